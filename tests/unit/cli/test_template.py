"""`--format`: what docker's users type, and what it prints."""

from __future__ import annotations

from typing import Any

import pytest

from insula.errors import InvalidRequest
from insula.model.go_template import render

VALUE: dict[str, Any] = {
    "State": {"Running": True, "Pid": 7},
    "Labels": {"b": "2", "a": "1"},
    "Mounts": [{"Destination": "/x"}, {"Destination": "/y"}],
    "Empty": [],
    "Init": None,
    "Name": "/web",
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{.State.Running}} {{.State.Pid}}", "true 7"),
        ("{{json .Labels}}", '{"b":"2","a":"1"}'),
        ("{{.Labels}}", "map[a:1 b:2]"),
        ("{{.Init}}", "<nil>"),
        ('{{index .Labels "a"}}', "1"),
        ('{{index .Labels "none"}}', ""),
        ("{{with index .Mounts 1}}{{.Destination}}{{end}}", "/y"),
        ("{{range .Mounts}}{{.Destination}} {{end}}", "/x /y "),
        ("{{range $i, $m := .Mounts}}{{$i}}={{$m.Destination}};{{end}}", "0=/x;1=/y;"),
        ("{{range $k, $v := .Labels}}{{$k}}{{$v}}{{end}}", "a1b2"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Running}}yes{{else}}no{{end}}", "yes"),
        ("{{if eq .State.Pid 8}}8{{else if eq .State.Pid 7}}7{{else}}?{{end}}!", "7!"),
        ("{{if and .State.Running (not .Empty)}}x{{end}}", "x"),
        ("{{len .Mounts}}", "2"),
        ("{{.State.Running | not}}", "false"),
        ('{{slice .Name 1}} {{.Name | upper | printf "%s-%s" "n"}}', "web n-/WEB"),
        ("{{$x := .Name}}{{$x}}{{$.State.Pid}}", "/web7"),
        ("a {{- .Name -}} b", "a/webb"),
        ("a {{- /* said */ -}} b", "ab"),
        ('{{join (split "a,b" ",") "+"}}\\n', "a+b\n"),
        ("{{println .Name}}", "/web\n"),
    ],
)
def test_templates(template: str, expected: str) -> None:
    assert expected == render(template, VALUE)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{.Nothing}}", "no .Nothing"),
        ("{{.Name.More}}", "no .Name.More"),
        ("{{range .Mounts}}", "end"),
        ("{{end}}", "unexpected"),
        ("{{.Name", "unclosed"),
        ("{{nosuch .Name}}", "not defined"),
        ("{{}}", "missing value"),
        ("{{$x}}", "undefined variable"),
        ("{{index .Mounts 9}}", "index"),
        ("{{else}}", "unexpected"),
    ],
)
def test_what_is_wrong_is_said(template: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        render(template, VALUE)


def test_labels_by_name() -> None:
    assert "1" == render('{{.Label "a"}}', {"Labels": "a=1,b=2"})
