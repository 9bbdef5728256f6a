//! A guest that begins connections as fast as it can. By itself, since it takes the processor from other tests.

mod world;

use std::time::{Duration, Instant};

use wrenn_net::Budget;

use world::guest::flood;
use world::in_a_world;

#[test]
fn a_flood_of_connections_costs_the_others_nothing_and_the_program_little() {
    in_a_world("a_flood_of_connections_costs_the_others_nothing_and_the_program_little", async |world| {
        world.echo("93.184.216.34:80");
        world.echo("[2606:2800::34]:80");
        let budget = Budget::new(4096);
        let ((loud, loud_egress), (quiet, _quiet_egress)) = (world.guest_of(&budget), world.guest_of(&budget));
        let namespace = loud.namespace.clone();
        let flood = std::thread::spawn(move || namespace.run(|| flood(Duration::from_secs(3))));
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (before, mut slowest) = (descriptors(), Duration::ZERO);
        while !flood.is_finished() {
            let began = Instant::now();
            quiet.connect("93.184.216.34:80").await.unwrap();
            slowest = slowest.max(began.elapsed());
        }
        let sent = flood.join().unwrap();
        let refused = loud_egress.counters().refusals;
        println!("{sent} sent, {refused} answered; another guest's slowest connect took {slowest:?}");
        assert!(refused <= 5000, "{refused} of {sent} were answered in three seconds");
        // Some milliseconds; a SYN that was lost is sent again after one second, and after three.
        assert!(slowest < Duration::from_secs(5), "{slowest:?}");
        assert!(descriptors() < before + 2500, "{} descriptors before, {} now", before, descriptors());
    });
}
