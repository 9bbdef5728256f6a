//! Which kernel modules the lab loads, and in which order.

use anyhow::Context;

/// The files of `wanted` and of what they need, in load order, by the account that `depmod` gives in `modules.dep`. A line
/// names a module, and then what it needs, nearest first. What is not listed is built in, or this kernel lacks it.
pub(super) fn load_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> anyhow::Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for line in wanted.iter().map(|name| find(modules_dep, name)) {
        let Some(line) = line else { continue };
        let (module, needed) = line.split_once(':').context("modules.dep has a line without a colon")?;
        for file in needed.split_whitespace().rev().chain([module]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

fn find<'a>(modules_dep: &'a str, name: &str) -> Option<&'a str> {
    modules_dep.lines().find(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == name)
    })
}

/// The machine's own devices, KVM, and what sandboxes' networks are made of.
pub(super) const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "overlay",
    "irqbypass",
    "kvm",
    "kvm_amd",
    "tun",
    "veth",
    "nf_tables",
    "nft_tproxy",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_loads_once_and_after_what_it_needs() {
        let dep = "k/ring.ko:\nk/virtio.ko: k/ring.ko\nk/virtio-pci.ko: k/virtio.ko k/ring.ko\nk/blk.ko: k/virtio.ko k/ring.ko\n";
        let order = load_order(dep, &["virtio_pci", "built_in", "blk"]).unwrap();
        assert_eq!(order, ["k/ring.ko", "k/virtio.ko", "k/virtio-pci.ko", "k/blk.ko"]);
    }
}
