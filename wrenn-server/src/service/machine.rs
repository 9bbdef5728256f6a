//! What the kernel says of this machine's memory.

/// How much memory there is, in MiB.
pub(super) fn memory_mib() -> Option<u64> {
    field_mib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// How much memory is left for who asks, in MiB.
pub(super) fn available_memory_mib() -> Option<u64> {
    field_mib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn field_mib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(field_mib("MemTotal:  24000 kB\nMemAvailable: 2048 kB\n", "MemAvailable:"), Some(2));
        assert_eq!(field_mib("MemTotal:  lots\n", "MemTotal:"), None);
        let (all, left) = (memory_mib().expect("it is told"), available_memory_mib().expect("it is told"));
        assert!(left > 0 && left <= all, "{left} of {all}");
    }
}
