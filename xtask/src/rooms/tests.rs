//! Small made-up crates, and what is said of them.

use std::path::Path;

use super::Package;

/// Says what is wrong with a crate of these files, whose order of rooms is `order`.
fn check(files: &[(&str, &str)], order: &[&str]) -> Vec<String> {
    let workspace = tempfile::tempdir().expect("a directory");
    let write = |name: &Path, text: &str| {
        let path = workspace.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    };
    for (name, text) in files {
        write(&Path::new("made-up/src").join(name), text);
    }
    let block = if order.is_empty() { String::new() } else { format!("```rooms made-up\n{}\n```\n", order.join("\n")) };
    write(Path::new("ARCHITECTURE.md"), &block);
    let package = Package { name: "made-up".to_owned(), dir: workspace.path().join("made-up") };
    let violations = package.check(workspace.path()).expect("a crate that can be read");
    violations.iter().map(|violation| violation.to_string().replace("made-up/src/", "")).collect()
}

/// Holds if the two files are in a circle, and nothing else is wrong.
fn assert_circle(said: &[String], first: &str, second: &str) {
    let expected = format!("a circle of 2 files:\n    {first}\n    {second}");
    assert_eq!(said, [expected]);
}

#[test]
fn a_crate_in_which_every_import_runs_down_has_nothing_wrong() {
    let said = check(
        &[
            ("lib.rs", "mod a;\nmod b;\nmod c;\npub use a::A;"),
            ("a.rs", "mod child;\nuse crate::b::B;\npub struct A(B, child::Child);"),
            ("a/child.rs", "use crate::c;\npub struct Child(c::C);"),
            ("b.rs", "use std::sync::Arc;\nuse crate::c::C;\npub struct B(Arc<C>);"),
            ("c.rs", "pub struct C;"),
        ],
        &["a", "b", "c"],
    );
    assert_eq!(said, [""; 0]);
}

#[test]
fn two_files_that_import_each_other_are_a_circle_with_every_line() {
    let said = check(
        &[
            ("lib.rs", "mod a;\nmod b;"),
            ("a.rs", "use crate::b::B;\npub struct A;\nfn f(_: B) { crate::b::g() }"),
            ("b.rs", "\npub struct B;\npub fn g() { let _: super::a::A; }"),
        ],
        &[],
    );
    assert_circle(&said, "a.rs:1,3 imports b.rs", "b.rs:3 imports a.rs");
}

#[test]
fn a_parent_and_a_child_that_import_each_other_are_a_circle() {
    let child = "use super::Shared;\npub struct Child(Shared);";
    let files = |parent| [("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/child.rs", child)];
    let said = check(&files("mod child;\npub struct Shared;\npub use child::Child;"), &[]);
    assert_circle(&said, "a/mod.rs:3 imports a/child.rs", "a/child.rs:1 imports a/mod.rs");

    let said = check(&files("mod child;\npub struct Shared;"), &[]);
    assert_eq!(said, [""; 0], "a `mod` alone is no import");
}

#[test]
fn what_the_root_defines_and_what_it_exports_are_a_circle() {
    let said = check(
        &[
            ("lib.rs", "mod a;\npub use a::A;\npub type Result<T> = std::result::Result<T, ()>;"),
            ("a.rs", "pub fn f() -> crate::Result<()> { Ok(()) }\npub struct A;"),
        ],
        &[],
    );
    assert_circle(&said, "lib.rs:2 imports a.rs", "a.rs:1 imports lib.rs");
}

#[test]
fn the_shortest_circles_are_named_until_no_import_closes_one() {
    let said = check(
        &[
            ("lib.rs", "mod a;\nmod b;\nmod c;"),
            ("a.rs", "pub struct A(crate::b::B);"),
            ("b.rs", "pub struct B(crate::c::C);"),
            ("c.rs", "pub struct C(Box<crate::a::A>, Box<crate::b::B>);"),
        ],
        &[],
    );
    assert_eq!(
        said,
        [
            "a circle of 2 files:\n    b.rs:1 imports c.rs\n    c.rs:1 imports b.rs",
            "a circle of 3 files:\n    a.rs:1 imports b.rs\n    b.rs:1 imports c.rs\n    c.rs:1 imports a.rs",
        ]
    );
}

#[test]
fn a_re_export_of_the_root_is_a_detour_and_hides_no_circle() {
    let said = check(
        &[
            ("lib.rs", "mod a;\nmod b;\npub use a::A;\npub use b::B;"),
            ("a.rs", "use crate::B;\npub struct A(B);"),
            ("b.rs", "pub struct B;\nfn f(_: crate::A) {}"),
        ],
        &[],
    );
    assert_eq!(
        said,
        [
            "a.rs:1: names crate::B through lib.rs:4: name the module that has it, crate::b",
            "b.rs:2: names crate::A through lib.rs:3: name the module that has it, crate::a",
            "a circle of 2 files:\n    a.rs:1 imports b.rs\n    b.rs:2 imports a.rs",
        ]
    );
}

#[test]
fn a_room_is_entered_by_its_door_from_outside_alone() {
    let said = check(
        &[
            ("lib.rs", "mod room;\nmod user;"),
            ("user.rs", "use crate::room::Thing;\npub struct User(Thing);"),
            ("room.rs", "mod thing;\nmod other;\npub use thing::Thing;"),
            ("room/thing.rs", "pub struct Thing;"),
            ("room/other.rs", "use super::Thing;\nfn f(_: Thing) {}"),
        ],
        &[],
    );
    assert_eq!(
        said,
        ["room/other.rs:1: names super::Thing through room.rs:3: name the module that has it, crate::room::thing"]
    );
}

#[test]
fn what_another_room_has_is_not_named_through_a_third() {
    let said = check(
        &[
            ("lib.rs", "mod a;\nmod b;\nmod c;"),
            ("a.rs", "use crate::b::C;\nfn f(_: C) {}"),
            ("b.rs", "pub use crate::c::C;"),
            ("c.rs", "pub struct C;"),
        ],
        &[],
    );
    assert_eq!(said, ["a.rs:1: names crate::b::C through b.rs:1: name the module that has it, crate::c"]);
}

#[test]
fn a_parent_lends_no_child_its_own_imports() {
    let said = check(
        &[
            ("lib.rs", "mod a;"),
            ("a.rs", "mod child;\nuse std::sync::Arc;\npub struct A(Arc<u8>);"),
            ("a/child.rs", "use super::Arc;\npub struct Child(Arc<u8>);"),
        ],
        &[],
    );
    assert_eq!(said, ["a/child.rs:1: names super::Arc through a.rs:2: name the crate that has it"]);
}

#[test]
fn an_import_upward_or_of_a_peer_or_of_the_root_is_told() {
    let said = check(
        &[
            ("lib.rs", "mod high;\nmod one;\nmod other;\npub const LIMIT: u8 = 1;"),
            ("high.rs", "use crate::one::One;\npub struct High(One);\npub struct Tall;"),
            ("one.rs", "pub struct One;\nfn f() { crate::other::g() }"),
            ("other.rs", "mod deep;\npub fn g() {}\nconst L: u8 = crate::LIMIT;"),
            ("other/deep.rs", "\n\nuse crate::high::Tall;\nfn f(_: Tall) {}"),
        ],
        &["high", "one other"],
    );
    assert_eq!(
        said,
        [
            "one.rs:2: imports other.rs, and the room `other` is beside `one`, not below it",
            "other.rs:3: imports lib.rs, which is above every room",
            "other/deep.rs:3: imports high.rs, and the room `high` is above `other`",
        ]
    );
}

#[test]
fn an_order_names_every_room_and_no_other() {
    let said =
        check(&[("lib.rs", "mod a;\nmod b;\n#[cfg(test)]\nmod tests;"), ("a.rs", ""), ("b.rs", "")], &["a", "c"]);
    assert_eq!(
        said,
        [
            "ARCHITECTURE.md: the rooms of made-up lack `b`",
            "ARCHITECTURE.md: the rooms of made-up have `c`, which is no module of it",
        ]
    );
}

/// Says what `b` imports from `a`, which imports `b`, if `b` is written so.
fn in_circle(b: &str) -> Vec<String> {
    let a = "pub struct A(crate::b::B);\npub fn f() {}\npub mod text {}\npub enum E { One }\npub const N: u8 = 1;";
    check(&[("lib.rs", "mod a;\nmod b;"), ("a.rs", a), ("b.rs", b)], &[])
}

#[test]
fn a_path_is_found_wherever_it_stands() {
    for b in [
        "pub struct B(Option<Box<crate::a::A>>);",
        "pub struct B;\nimpl From<crate::a::A> for B {}",
        "pub struct B;\nfn g() { super::a::f(); }",
        "pub struct B;\nfn g() { let x = [0; crate::a::N as usize]; }",
        "pub struct B;\nfn g() { use super::a::f; f() }",
        "pub struct B;\nfn g() { use super::a; a::f() }",
        "pub struct B;\nfn g(x: u8) -> bool { matches!(x, crate::a::N) }",
        "pub struct B;\nfn g() { println!(\"{}\", crate::a::N) }",
        "use crate::a;\npub struct B;\nfn g() { match 1 { a::N => {} } }",
        "use crate::a::*;\npub struct B;",
        "use crate::{a::{self as other, E::One}};\npub struct B;",
        "pub struct B;\nmacro_rules! m { () => { $crate::a::f() } }",
        "pub struct B {\n    #[serde(with = \"crate::a::text\")]\n    x: u8 }",
        "use crate::a;\npub struct B {\n    #[serde(rename = \"y\", with = \"a::text\")]\n    x: u8 }",
        "pub struct B {\n    #[cfg_attr(all(), serde(default = \"crate::a::f\"))]\n    x: u8 }",
        "#[derive(crate::a::f)]\npub struct B;",
        "pub struct B;\nmod inline { fn g() { crate::a::f() } }",
        "pub struct B;\nmod inline { fn g() { super::super::a::f() } }",
    ] {
        let said = in_circle(b);
        assert_eq!(said.len(), 1, "{b}: {said:?}");
        assert!(said[0].contains("\n    b.rs:"), "{b}: {said:?}");
    }
}

#[test]
fn what_is_no_import_makes_no_circle() {
    for b in [
        "pub struct B;",
        "/// See [`crate::a::A`].\npub struct B;",
        "pub struct B;\nfn g() { ::a::f(); let _ = \"crate::a::f\"; }",
        "pub struct B;\npub(in crate::a) fn g() {}",
        "use crate::a;\npub struct B;",
        "pub struct B;\nmod a { pub fn f() {} }\nfn g() { a::f(); self::a::f() }",
        "pub struct B;\nfn g<'a>() -> impl Sized + use<'a> {}",
        "pub struct B;\n#[cfg(test)]\nmod tests { use crate::a::A; }",
        "pub struct B;\n#[cfg(all(test, unix))]\nuse crate::a::A;",
        "pub struct B;\nimpl B {\n    #[cfg(test)]\n    fn g() { crate::a::f() }\n    fn h() {} }",
        "pub struct B {\n    #[cfg(test)]\n    x: crate::a::A,\n    y: u8 }",
        "pub struct B;\nfn g(x: u8) { match x {\n    #[cfg(test)]\n    crate::a::N => {}\n    _ => {} } }",
    ] {
        assert_eq!(in_circle(b), [""; 0], "{b}");
    }
}

#[test]
fn what_is_not_for_tests_alone_counts() {
    for attribute in ["cfg(not(test))", "cfg(any(test, unix))", "cfg(feature = \"test\")"] {
        let said = in_circle(&format!("pub struct B;\n#[{attribute}]\nfn g() {{ crate::a::f() }}"));
        assert_eq!(said.len(), 1, "{attribute}: {said:?}");
    }
}

#[test]
fn a_function_that_is_named_like_its_module_is_told_from_it() {
    let said = check(
        &[
            ("lib.rs", "mod arm;\nmod b;\npub use arm::arm;"),
            ("arm.rs", "pub fn arm() {}\npub struct Arm;"),
            ("b.rs", "use crate::arm::Arm;\nfn f(_: Arm) {\n    crate::arm()\n}"),
        ],
        &[],
    );
    assert_eq!(said, ["b.rs:3: names crate::arm through lib.rs:3: name the module that has it, crate::arm"]);
}

#[test]
fn what_a_macro_defines_belongs_to_the_module_that_is_named() {
    let said = check(
        &[
            ("lib.rs", "mod a;\nmod b;"),
            ("a.rs", "make! { Made }\nuse crate::b::f;"),
            ("b.rs", "use crate::a::Made;\npub fn f() {}"),
        ],
        &[],
    );
    assert_circle(&said, "a.rs:2 imports b.rs", "b.rs:1 imports a.rs");
}
