import asyncio
import time

import pytest
from e2b import AsyncTemplate, Sandbox, Template, wait_for_port
from e2b.exceptions import BuildException


@pytest.fixture
def app(tmp_path):
    """What a template copies."""
    (tmp_path / "app" / "deep").mkdir(parents=True)
    (tmp_path / "app" / "deep" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "app" / "deep" / "run.sh").chmod(0o755)
    (tmp_path / "app" / "link").symlink_to("deep/run.sh")
    (tmp_path / "app" / "skip.log").write_text("no")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".dockerignore").write_text("**/*.log\n")
    return tmp_path


def recipe(place):
    return (
        Template(file_context_path=str(place))
        .from_template("base")
        .run_cmd("echo made > made && whoami > who")
        .copy("app", "app")
        .copy("a.txt", "/srv/a.txt", user="root", mode=0o600)
        .set_envs({"COLOUR": "blue", "SHAPE": "round"})
        .set_workdir("/home/user/app")
    )


def test_a_template_is_built_and_has_its_files_environment_and_server(app, create, name):
    told = []
    template = recipe(app).set_start_cmd("python3 -m http.server 8123", wait_for_port(8123))
    built = Template.build(template, name, on_build_logs=told.append)
    assert (built.template_id, built.name, built.tags) == (name, name, ["default"])
    messages = [entry.message for entry in told]
    assert any("RUN echo made" in message for message in messages), messages
    assert Template.exists(name) and not Template.exists(f"{name}x")
    sandbox = create(name)
    assert sandbox.get_info().template_id == name
    run = lambda line, **options: sandbox.commands.run(line, **options).stdout.strip()
    assert run("cat /home/user/made /home/user/who").split() == ["made", "user"]
    assert run("cd /home/user/app && ls -A && readlink link && ./link").split() == ["deep", "link", "deep/run.sh", "ran"]
    assert run("stat -c '%U %a' /home/user/app/deep/run.sh /srv/a.txt", user="root").split() == ["user", "755", "root", "600"]
    assert run("echo $COLOUR $SHAPE") == "blue round"
    assert "run.sh" in run("curl -s localhost:8123/deep/")
    # What has not changed is not done again, and its files are not sent again.
    told.clear()
    began = time.monotonic()
    again = Template.build(template, f"{name}:again", on_build_logs=told.append)
    took = time.monotonic() - began
    print(f"unchanged: {took:.2f} s")
    assert again.build_id != built.build_id and took < 20
    assert any("already cached" in entry.message for entry in told)
    assert sum("CACHED" in entry.message for entry in told) >= 5, [entry.message for entry in told]
    assert {tag.tag for tag in Template.get_tags(name)} == {"default", "again"}
    assert create(f"{name}:again").commands.run("cat /srv/a.txt", user="root").stdout == "text"
    # A tag goes back to what it was.
    assert Template.assign_tags(f"{name}:default", "again").build_id == built.build_id


def test_a_step_that_fails_says_which_and_why(name):
    template = Template().from_base_image().run_cmd("echo fine").run_cmd("echo to see >&2; exit 7").run_cmd("echo never")
    with pytest.raises(BuildException, match="exit 7(.|\n)*to see"):
        Template.build(template, name)
    assert not Template.exists(name)
    status = Template.build_in_background(template, name)
    end = time.monotonic() + 120
    while (now := Template.get_build_status(status)).status.value in ("building", "waiting"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert (now.status.value, now.reason.step) == ("error", "2")
    assert any(entry.message == "to see" for entry in now.reason.log_entries)
    with pytest.raises(BuildException, match="no_such_template"):
        Template.build(Template().from_template("no_such_template"), name)
    with pytest.raises(BuildException, match="registries"):
        Template.build(Template().from_image("registry.example/x"), name)


def test_templates_are_built_by_asyncio_and_on_templates(app, create, name):
    async def build():
        told = []
        template = AsyncTemplate().from_base_image().set_user("root").run_cmd("echo 1 > /one").skip_cache().run_cmd("date +%N > /two")
        await AsyncTemplate.build(template, name, tags=["v1", "v2"], on_build_logs=told.append)
        assert await AsyncTemplate.exists(f"{name}:v1") and not await AsyncTemplate.exists(f"{name}:default")
        return template

    template = asyncio.run(build())
    first = create(f"{name}:v2").commands.run("cat /two; whoami").stdout.split()
    assert first[1:] == ["root"]
    asyncio.run(AsyncTemplate.build(template, f"{name}:v3"))
    assert create(f"{name}:v3").commands.run("cat /two").stdout.split() != first[:1]
    on_top = Template().from_template(f"{name}:v1").run_cmd("cat /one /two > /three")
    Template.build(on_top, f"{name}-top")
    assert create(f"{name}-top").commands.run("cat /three").stdout.split() == ["1", first[0]]
