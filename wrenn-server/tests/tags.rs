//! Templates' tags by E2B's API, with a real snapshot.

mod common;

use serde_json::{Value, json};

use common::{Server, can_run, data_dir, new_key, sandbox};

#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn a_name_with_a_tag_stands_for_the_template_that_it_was_assigned_to() {
    if !can_run("a_name_with_a_tag_stands_for_the_template_that_it_was_assigned_to") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let other = server.client(&new_key(dir.path(), "eve"));
    let assign = |target: &str, tags: Value| client.post("/templates/tags", &json!({"target": target, "tags": tags}));
    let list = |name: &str| -> Vec<String> {
        let (status, tags) = client.get(&format!("/templates/{name}/tags"));
        assert_eq!(status, 200, "{tags}");
        let tags = tags.as_array().expect("a list").iter();
        tags.map(|one| format!("{}={}", one["tag"].as_str().expect("a tag"), one["buildID"].as_str().expect("an id")))
            .collect()
    };
    let made_of = |template: &str| {
        let (status, made) = client.post("/v2/sandboxes", &json!({"templateID": template, "timeout": 60}));
        if status == 201 {
            assert_eq!(client.delete(&format!("/sandboxes/{}", made["sandboxID"].as_str().expect("an id"))), 204);
        }
        (status, made["templateID"].as_str().unwrap_or_default().to_owned())
    };
    let id = sandbox(&client, &json!({}));
    let (status, answer) = client.post("/v1/snapshots", &json!({"sandbox_id": id, "name": "warm"}));
    assert_eq!(status, 201, "{answer}");

    let (status, assigned) = assign("warm", json!(["Stable", "v1"]));
    assert_eq!((status, &assigned["tags"]), (201, &json!(["stable", "v1"])), "{assigned}");
    let build = assigned["buildID"].as_str().expect("an id").to_owned();
    assert_eq!((build.len(), build.matches('-').count()), (36, 4), "{build}");
    assert_eq!(list("warm"), ["default", "stable", "v1"].map(|tag| format!("{tag}={build}")));
    assert_eq!(client.get("/templates/warm/tags/count"), (200, json!({"total": 3})));
    let (status, groups) = client.get("/templates/warm/tags/groups?sort=name_asc&tagsLimit=2");
    let names = |groups: &Value| -> Vec<String> {
        let groups = groups["tags"].as_array().expect("a list").iter();
        groups.map(|one| one["tag"].as_str().expect("a tag").to_owned()).collect()
    };
    assert_eq!(
        (status, names(&groups), &groups["nextCursor"]),
        (200, vec!["default".into(), "stable".into()], &json!("stable"))
    );
    assert_eq!(groups["tags"][1]["assignments"][0]["buildId"], json!(build), "{groups}");
    let (_, rest) = client.get("/templates/warm/tags/groups?sort=name_asc&tagsLimit=2&tagsCursor=stable");
    assert_eq!((names(&rest), &rest["nextCursor"]), (vec!["v1".to_owned()], &Value::Null), "{rest}");
    assert_eq!(names(&client.get("/templates/warm/tags/groups?search=Stab").1), ["stable"]);
    let (status, assignments) = client.get("/templates/warm/tags/STABLE/assignments");
    assert_eq!((status, &assignments["data"]), (200, &groups["tags"][1]["assignments"]), "{assignments}");
    for (path, status) in [
        ("groups?sort=x", 400),
        ("groups?tagsCursor=x", 400),
        ("groups?tagsLimit=101", 400),
        ("v2/assignments", 404),
        ("a%20b/assignments", 400),
    ] {
        assert_eq!(client.get(&format!("/templates/warm/tags/{path}")).0, status, "{path}");
    }
    assert_eq!(other.get("/templates/warm/tags/groups").0, 404);
    for (tag, exists) in [("STABLE", true), ("default", true), ("latest", true), ("v2", false)] {
        let (status, answer) = client.get(&format!("/templates/warm/tags/exists?tag={tag}"));
        let right = json!({"exists": exists, "normalizedTag": tag.to_lowercase()});
        assert_eq!((status, answer), (200, right));
    }
    for name in ["warm:stable", "warm:default", "warm:latest", "warm"] {
        assert_eq!(made_of(name), (201, "warm".to_owned()), "{name}");
    }
    let (status, answer) = client.get("/templates/aliases/warm:v1");
    assert_eq!((status, &answer["templateID"]), (200, &json!("warm")), "{answer}");

    // A name takes tags of other templates, and by `default` another template as its own.
    assert_eq!(assign("warm:v1", json!(["base:mine", "base:default"])).0, 201);
    assert_eq!(made_of("base:mine"), (201, "warm".to_owned()));
    assert_eq!(made_of("base"), (201, "warm".to_owned()));
    let (status, answer) = client.post("/v1/sandboxes", &json!({"template": "base:mine"}));
    assert_eq!((status, &answer["template"]), (201, &json!("warm")), "{answer}");
    assert_eq!(client.send("DELETE", "/templates/tags", Some(r#"{"name":"base","tags":["default"]}"#)).0, 204);
    assert_eq!(made_of("base"), (201, "base".to_owned()));

    // Another key's names stand for what they stood for.
    assert_eq!(other.get("/templates/warm/tags").0, 404);
    assert_eq!(other.post("/templates/tags", &json!({"target": "warm", "tags": ["a"]})).0, 404);
    assert_eq!(other.post("/v2/sandboxes", &json!({"templateID": "base:mine"})).0, 404);

    for (target, tags, status) in [
        ("nothing", json!(["a"]), 404),
        ("warm:none", json!(["a"]), 404),
        ("warm", json!([]), 400),
        ("warm", json!(["a b"]), 400),
        ("warm", json!((0..101).map(|number| format!("t{number}")).collect::<Vec<_>>()), 400),
    ] {
        assert_eq!(assign(target, tags.clone()).0, status, "{target} {tags}");
    }
    assert_eq!(client.send("DELETE", "/templates/tags", Some(r#"{"name":"nothing","tags":["a"]}"#)).0, 404);
    for _ in 0..2 {
        assert_eq!(client.send("DELETE", "/templates/tags", Some(r#"{"name":"warm","tags":["v1"]}"#)).0, 204);
    }
    assert_eq!(made_of("warm:v1").0, 404);

    // A template takes its tags with it.
    assert_eq!(client.delete("/templates/warm"), 204);
    assert_eq!((made_of("warm:stable").0, made_of("base:mine").0), (404, 404));
    assert_eq!(list("base").len(), 1);
    server.stop();
}
