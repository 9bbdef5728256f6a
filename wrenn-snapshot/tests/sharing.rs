//! What one process uses, no other process collects.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use wrenn_snapshot::{Error, Generation, GenerationId, LocalStore, PAGE_BYTES, PageIndex, PageRange, Space};

const PAGES: u32 = 4;
const ALL: [PageRange; 1] = [PageRange { start: PageIndex(0), count: PAGES }];
const ONE: [PageRange; 1] = [PageRange { start: PageIndex(0), count: 1 }];

fn open() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path().join("store")).expect("a store");
    (dir, store)
}

fn publish(store: &LocalStore, parent: Option<&Generation>, value: u8, dirty: &[PageRange]) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    pending.write_dirty(Space::Memory, &[value; PAGES as usize * PAGE_BYTES], dirty).expect("written");
    pending.write_blob("state", &[value; 100]).expect("written");
    pending.publish(&[value]).expect("published")
}

fn read(generation: &Generation) -> Vec<u8> {
    let mut memory = vec![0; PAGES as usize * PAGE_BYTES];
    generation.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut memory).expect("read");
    memory
}

/// The process of this file's tests that shares a store with the test that started it.
struct Other {
    process: Child,
    lines: mpsc::Receiver<String>,
    input: ChildStdin,
}

impl Other {
    fn start(role: &str, store: &Path, argument: Option<GenerationId>) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("the test's own name"))
            .args(["--exact", "the_other_process", "--ignored", "--nocapture"])
            .env("OTHER_ROLE", role)
            .env("OTHER_STORE", store)
            .env("OTHER_GENERATION", argument.map(|id| id.to_string()).unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test runs itself");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let input = process.stdin.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(said) = line.strip_prefix("other: ") {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        Self { process, lines, input }
    }

    /// Waits for what it says next.
    fn says(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(60)).expect("the other process is alive")
    }

    fn go_on(&mut self) {
        self.input.write_all(b"g").expect("the other process is alive");
    }

    fn ends(self) {
        drop(self.input);
        let mut process = self.process;
        assert!(process.wait().expect("it ends").success());
    }

    fn dies(mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("dead");
    }
}

fn say(line: &dyn std::fmt::Display) {
    writeln!(std::io::stdout(), "\nother: {line}").expect("the test listens");
}

fn wait_for_the_end() {
    std::io::stdin().read_to_end(&mut Vec::new()).expect("the test ends it");
}

#[test]
#[ignore = "the other process of the tests below, which start it"]
fn the_other_process() {
    let Ok(role) = std::env::var("OTHER_ROLE") else { return };
    let store = LocalStore::open(std::env::var("OTHER_STORE").expect("a path")).expect("a store");
    let given = || store.load(std::env::var("OTHER_GENERATION").expect("set").parse().expect("an id")).expect("loads");
    match role.as_str() {
        "holds a generation" => {
            let generation = given();
            say(&"ready");
            wait_for_the_end();
            assert_eq!(read(&generation)[PAGE_BYTES], 1, "the ancestor's page is still there");
        }
        "writes a child" => {
            let pending = store.begin(Some(&given())).expect("begun");
            say(&"ready");
            wait_for_the_end();
            pending.publish(b"").expect("published");
        }
        "has published" => {
            let generation = publish(&store, Some(&given()), 3, &ONE);
            say(&generation.id());
            wait_for_the_end();
            assert_eq!(read(&generation)[PAGE_BYTES], 1, "the ancestor's page is still there");
        }
        "publishes and forgets" => loop {
            for is_kept in [true, false] {
                let first = publish(&store, None, 1, &ALL);
                let second = publish(&store, Some(&first), 2, &ONE);
                drop(first);
                let id = second.id();
                let kept = Some(second).filter(|_| is_kept);
                say(&id);
                if let Some(kept) = kept {
                    assert_eq!(std::io::stdin().read(&mut [0]).expect("the test goes on"), 1);
                    assert_eq!(read(&kept)[PAGE_BYTES], 1);
                }
            }
        },
        "collects" => {
            say(&"ready");
            loop {
                store.collect(&[]).expect("collected");
            }
        }
        role => panic!("{role:?} is no role"),
    }
}

#[test]
fn what_another_process_has_loaded_stays_until_it_ends() {
    for ends in [Other::ends, Other::dies] {
        let (_dir, store) = open();
        let first = publish(&store, None, 1, &ALL);
        let second = publish(&store, Some(&first), 2, &ONE).id();
        drop(first);
        let other = Other::start("holds a generation", store.root(), Some(second));
        other.says();
        assert_eq!(store.collect(&[]).expect("collected"), [], "the second is in use, and needs the first");
        ends(other);
        assert_eq!(store.collect(&[]).expect("collected").len(), 2);
    }
}

#[test]
fn what_another_process_writes_keeps_its_parent() {
    let (_dir, store) = open();
    let parent = publish(&store, None, 1, &ALL).id();
    let other = Other::start("writes a child", store.root(), Some(parent));
    other.says();
    assert_eq!(store.collect(&[]).expect("collected"), []);
    LocalStore::open(store.root()).expect("a sweep leaves it alone");
    other.ends();
    assert_eq!(store.list().expect("listed").len(), 2, "it was published");
    assert_eq!(store.collect(&[]).expect("collected").len(), 2);
}

#[test]
fn what_another_process_published_and_has_not_recorded_stays() {
    let (_dir, store) = open();
    let parent = publish(&store, None, 1, &ALL).id();
    let other = Other::start("has published", store.root(), Some(parent));
    let published: GenerationId = other.says().parse().expect("an id");
    assert_eq!(store.collect(&[]).expect("collected"), []);
    assert_eq!(store.load(published).expect("loads").metadata(), [3]);
    other.ends();
    assert_eq!(store.collect(&[]).expect("collected").len(), 2);
}

/// Two collect as fast as they can while a third publishes, and this one loads what it hears of. Of every two it hears of,
/// the publisher keeps the first until it has been told to go on, and gives up the second at once, so that both happen.
#[test]
fn a_load_that_loses_a_race_finds_nothing_and_one_that_wins_finds_all() {
    let (_dir, store) = open();
    let collectors = [(); 2].map(|()| Other::start("collects", store.root(), None));
    collectors.iter().for_each(|collector| assert_eq!(collector.says(), "ready"));
    let mut publisher = Other::start("publishes and forgets", store.root(), None);
    for round in 0..100 {
        let id: GenerationId = publisher.says().parse().expect("an id");
        let is_kept = round % 2 == 0;
        match store.load(id) {
            Ok(generation) => {
                let mut expected = [1; PAGES as usize * PAGE_BYTES];
                expected[..PAGE_BYTES].fill(2);
                assert!(read(&generation) == expected);
                assert_eq!(generation.blob("state").expect("a blob"), [2; 100]);
            }
            Err(Error::NotFound(gone)) if gone == id && !is_kept => {}
            Err(error) => panic!("round {round}: {error:?}"),
        }
        if is_kept {
            publisher.go_on();
        } else {
            wait_until_it_is_collected(&store, id);
        }
    }
    collectors.into_iter().for_each(Other::dies);
    publisher.dies();
    store.collect(&[]).expect("collected");
    assert_eq!(std::fs::read_dir(store.root()).expect("listed").count(), 0, "nothing is left behind");
}

/// It was given up, so a collector takes it sooner or later, and who loads it then finds nothing.
fn wait_until_it_is_collected(store: &LocalStore, id: GenerationId) {
    let started = Instant::now();
    while !matches!(store.load(id), Err(Error::NotFound(gone)) if gone == id) {
        assert!(started.elapsed() < Duration::from_secs(30), "nobody collects it");
        std::thread::sleep(Duration::from_millis(1));
    }
}
