//! Who a process has started, for a kernel without control groups.

use std::{collections::BTreeSet, fs};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Kills everybody who descends from `pid`, and `pid`. A descendant whose own parent has ended is not found: it is the
/// child of PID 1 by then.
pub(super) fn kill_tree(pid: u32) {
    let mut known = BTreeSet::from([pid]);
    // Whoever forks meanwhile is found the next time round.
    for _ in 0..ROUNDS_MAX {
        let found = descendants(&known, &parents());
        let is_last = found.is_subset(&known);
        known.extend(found);
        for pid in known.iter().rev().filter_map(|pid| i32::try_from(*pid).ok()) {
            // It can only have ended in the meantime.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if is_last {
            return;
        }
    }
}

/// Every process, with its parent.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// `7 (name) S 1 …`; the name may hold anything, `)` too.
fn parent(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(1)?.parse().ok()
}

fn descendants(of: &BTreeSet<u32>, parents: &[(u32, u32)]) -> BTreeSet<u32> {
    let mut found = of.clone();
    loop {
        let before = found.len();
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| of.contains(parent) || found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found;
        }
    }
}

const ROUNDS_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_children_of_children_and_nobody_else() {
        let parents = [(5, 4), (2, 1), (4, 2), (3, 1), (6, 3), (7, 5)];
        assert_eq!(descendants(&[2].into(), &parents), [2, 4, 5, 7].into());
        assert_eq!(descendants(&[9].into(), &parents), [9].into());
    }

    #[test]
    fn a_name_cannot_fake_a_parent() {
        assert_eq!(parent("7 (a) S 99 (b) S 12 7 7"), Some(12));
        assert_eq!(parent("7 (cat) R 3 7"), Some(3));
        assert_eq!(parent(""), None);
    }
}
