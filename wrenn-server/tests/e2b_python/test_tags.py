import pytest
from e2b import Template
from e2b.exceptions import TemplateException


def test_a_template_has_tags(create, name):
    create().create_snapshot(name=name)
    assigned = Template.assign_tags(f"{name}:default", ["stable", "v1"])
    assert assigned.tags == ["stable", "v1"]
    tags = Template.get_tags(name)
    assert [tag.tag for tag in tags] == ["default", "stable", "v1"]
    assert {tag.build_id for tag in tags} == {assigned.build_id} and all(tag.created_at for tag in tags)
    assert create(f"{name}:stable").get_info().template_id == name
    assert Template.exists(f"{name}:v1") and not Template.exists(f"{name}:v2")
    Template.remove_tags(name, ["stable", "v1"])
    assert [tag.tag for tag in Template.get_tags(name)] == ["default"]
    assert not Template.exists(f"{name}:v1")
    with pytest.raises(TemplateException, match="404"):
        Template.assign_tags(f"{name}:none", "v1")
    create().delete_snapshot(name)
