//! Templates' tags by both APIs, with real snapshots and builds.

mod common;

use serde_json::{Value, json};

use common::{Client, Server, can_run, data_dir, new_key, run, sandbox};

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

/// Builds a template by the native API, and gives the build's id.
fn build(client: &Client, recipe: &Value) -> String {
    let (status, begun) = client.post("/v1/builds", recipe);
    assert_eq!(status, 202, "{begun}");
    let id = begun["id"].as_str().expect("an id").to_owned();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    loop {
        let (_, now) = client.get(&format!("/v1/builds/{id}"));
        match now["status"].as_str() {
            Some("ready") => return id,
            Some("waiting" | "building") => assert!(std::time::Instant::now() < deadline, "{now}"),
            _ => panic!("{now}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn the_native_api_assigns_tags_and_leads_back_to_earlier_builds() {
    if !can_run("the_native_api_assigns_tags_and_leads_back_to_earlier_builds") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let other = server.client(&new_key(dir.path(), "eve"));
    let recipe = |state: &str, tags: Value| {
        let step = json!({"type": "run", "cmd": format!("echo {state} > /home/user/state")});
        json!({"name": "app", "tags": tags, "steps": [step]})
    };
    let first = build(&client, &recipe("first", json!([])));
    let second = build(&client, &recipe("second", json!(["default", "v2"])));
    let put = |path: &str, body: &Value| client.send("PUT", &format!("/v1/templates/{path}"), Some(&body.to_string()));
    let state_of = |template: &str| {
        let id = sandbox(&client, &json!({"template": template}));
        let state = run(&client, &id, "cat /home/user/state");
        assert_eq!(client.delete(&format!("/v1/sandboxes/{id}")), 204);
        state
    };
    let (status, history) = client.get("/v1/templates/app/history");
    assert_eq!((status, &history[0]["build_id"], &history[1]["build_id"]), (200, &json!(second), &json!(first)));
    assert_eq!((&history[0]["tags"], &history[1]["tags"]), (&json!(["default", "v2"]), &json!([])), "{history}");
    assert_eq!((&history[1]["vcpus"], &history[1]["memory_mb"]), (&json!(1), &json!(512)), "{history}");
    assert_eq!(state_of("app"), "second");

    // Back to the earlier one, which no tag stands for, and forth by a tag.
    let (status, tag) = put("app/tags/default", &json!({"build_id": first}));
    assert_eq!((status, &tag["tag"], &tag["template"]), (200, &json!("default"), &json!("app")), "{tag}");
    assert_eq!((&tag["build_id"], state_of("app")), (&json!(first), "first".to_owned()));
    assert_eq!(put("app/tags/Stable", &json!({"target": "app:v2"})).1["tag"], "stable");
    assert_eq!(state_of("app:stable"), "second");
    let (status, tags) = client.get("/v1/templates/app/tags");
    let names: Vec<_> =
        tags.as_array().expect("a list").iter().map(|one| one["tag"].as_str().expect("a tag")).collect();
    assert_eq!((status, names), (200, vec!["default", "stable", "v2"]));
    assert_eq!(client.get("/v1/templates/app/tags/stable").1, tags[1]);
    // E2B's clients see the same.
    assert_eq!(client.get("/templates/app/tags/exists?tag=stable").1["exists"], true);
    assert_eq!(client.delete("/v1/templates/app/tags/stable"), 204);
    assert_eq!(client.delete("/v1/templates/app/tags/stable"), 404);

    // What no build has made.
    let (_, of_image) = client.get("/v1/templates/base/tags");
    assert_eq!((&of_image[0]["tag"], &of_image[0]["build_id"]), (&json!("default"), &Value::Null), "{of_image}");
    assert_eq!(put("mine/tags/v1", &json!({"target": "base"})).1["template"], "base");
    assert_eq!(client.get("/v1/templates/mine/history").0, 404);

    for (path, body, status) in [
        ("app/tags/a%20b", json!({"target": "app"}), 400),
        ("app/tags/a:b", json!({"target": "app"}), 400),
        ("app:v2/tags/a", json!({"target": "app"}), 400),
        ("app/tags/a", json!({}), 400),
        ("app/tags/a", json!({"target": "app", "build_id": first}), 400),
        ("app/tags/a", json!({"tag": "app"}), 400),
        ("app/tags/a", json!({"target": "nothing"}), 404),
        ("app/tags/a", json!({"target": "app:none"}), 404),
        ("app/tags/a", json!({"build_id": "00000000-0000-8000-8000-000000000000"}), 404),
        ("base/tags/a", json!({"build_id": first}), 404),
    ] {
        assert_eq!(put(path, &body).0, status, "{path} {body}");
    }
    for path in ["nothing/tags", "nothing/history", "app/tags/none", "base/history"] {
        assert_eq!(client.get(&format!("/v1/templates/{path}")).0, 404, "{path}");
    }
    for path in ["app/tags", "app/tags/v2", "app/history"] {
        assert_eq!(other.get(&format!("/v1/templates/{path}")).0, 404, "{path}");
    }
    assert_eq!(other.send("PUT", "/v1/templates/app/tags/a", Some(r#"{"target": "app"}"#)).0, 404);
    server.stop();
}
