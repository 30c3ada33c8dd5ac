"""Dockerfiles to stages and instructions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.dockerfile.expansion import expand_instruction
from insula.dockerfile.instructions import (
    Arg,
    Command,
    Copy,
    Env,
    Expose,
    From,
    Health,
    Instruction,
    Label,
    OnBuild,
    Run,
    Shell,
    User,
    Volume,
    WorkDir,
)
from insula.dockerfile.mounts import RunMount, parse_mount
from insula.dockerfile.reader import Heredoc
from insula.dockerfile.stages import parse_dockerfile
from insula.errors import InvalidRequest
from insula.model.health import HealthCheck


def steps_of(text: str) -> list[Instruction]:
    return [step.instruction for step in parse_dockerfile(f"FROM a\n{text}".encode()).stages[0].steps]


def only(text: str) -> Any:
    (one,) = steps_of(text)
    return one


def complaint_about(text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_dockerfile(text.encode())
    return caught.value.message


def test_comments_continuation_and_empty_lines() -> None:
    text = "\ufeff# a comment\n\nfrom  debian:12 as Base\r\nrun a \\  \n  # not part of it\n\n   && b\n\nCMD x # y\n"
    parsed = parse_dockerfile(text.encode())
    (stage,) = parsed.stages
    assert From(image="debian:12", name="base") == stage.origin
    assert [Run(script="a    && b"), Command(line="x # y")] == [s.instruction for s in stage.steps]
    assert [4, 9] == [s.number for s in stage.steps]
    assert ["run a    && b", "CMD x # y"] == [s.code for s in stage.steps]


def test_another_escape_character() -> None:
    text = "# syntax = docker/dockerfile:1\n# escape = `\nFROM a\nRUN dir C:\\ `\n  b\n"
    parsed = parse_dockerfile(text.encode())
    assert "`" == parsed.escape
    assert Run(script="dir C:\\   b") == parsed.stages[0].steps[0].instruction


def test_a_directive_after_a_comment_is_a_comment() -> None:
    assert "\\" == parse_dockerfile(b"# hello\n# escape=`\nFROM a\n").escape


def test_two_escaped_backslashes_do_not_continue() -> None:
    assert [Run(script="a \\\\"), Run(script="b")] == steps_of("RUN a \\\\\nRUN b")


def test_stages_and_what_comes_before() -> None:
    text = b"ARG V=1 W\nFROM a:$V AS one\nRUN x\nFROM one\nFROM --platform=linux/amd64 b AS three\n"
    parsed = parse_dockerfile(text)
    assert [Arg(pairs=(("V", "1"), ("W", None)))] == [s.instruction for s in parsed.arguments]
    assert ["one", "", "three"] == [s.origin.name for s in parsed.stages]
    assert "linux/amd64" == parsed.stages[2].origin.platform
    assert 1 == len(parsed.up_to("ONE").stages)
    assert 2 == len(parsed.up_to("1").stages)
    with pytest.raises(InvalidRequest, match='target stage "four" could not be found'):
        parsed.up_to("four")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ENV a=1 b='x y' c=$d", Env(pairs=(("a", "1"), ("b", "'x y'"), ("c", "$d")))),
        ("ENV a  hello there", Env(pairs=(("a", "hello there"),))),
        ("LABEL a.b=\"x y\"", Label(pairs=(("a.b", '"x y"'),))),
        ("ARG a b=2", Arg(pairs=(("a", None), ("b", "2")))),
        ('CMD ["a", "b c"]', Command(words=("a", "b c"))),
        ("CMD [a]", Command(line="[a]")),
        ("ENTRYPOINT a b", Command(line="a b", entrypoint=True)),
        ("ENTRYPOINT []", Command(words=(), entrypoint=True)),
        ("EXPOSE 80 $p", Expose(text="80 $p")),
        ('VOLUME ["/a b", "/c"]', Volume(paths=("/a b", "/c"))),
        ("VOLUME /a /b", Volume(paths=("/a", "/b"))),
        ("USER a:b", User(user="a:b")),
        ("WORKDIR /a b", WorkDir(path="/a b")),
        ("ONBUILD RUN a \\\n b", OnBuild(text="RUN a  b")),
        ('SHELL ["/bin/bash", "-c"]', Shell(words=("/bin/bash", "-c"))),
        ("HEALTHCHECK NONE", Health(check=HealthCheck(test=("NONE",)))),
        ("COPY a b /c/", Copy(sources=("a", "b"), target="/c/")),
        ('COPY ["a b", "c"]', Copy(sources=("a b",), target="c")),
        (
            "COPY --from=x --chown=1:2 --chmod=755 --link --parents --exclude=*.o --exclude=b a b",
            Copy(
                sources=("a",), target="b", source_stage="x", chown="1:2", chmod="755", link=True, parents=True,
                exclude=("*.o", "b"),
            ),
        ),
        (
            "ADD --checksum=sha256:1 https://a/b /",
            Copy(sources=("https://a/b",), target="/", add=True, checksum="sha256:1"),
        ),
        ('RUN ["a", "b"]', Run(words=("a", "b"))),
        ("RUN --network=none a --b", Run(script="a --b", network="none")),
        (
            "RUN --mount=type=tmpfs,target=/t --mount=target=/x,from=y a",
            Run(
                script="a",
                mounts=(RunMount(kind="tmpfs", target="/t"), RunMount(kind="bind", target="/x", source_stage="y")),
            ),
        ),
    ],
)  # fmt: skip
def test_instruction(text: str, expected: Instruction) -> None:
    assert expected == only(text)


def test_here_documents() -> None:
    text = "RUN <<EOF\na\n  b $c\nEOF\nRUN cat <<-'A' <<B >x\n\tone\n\tA\ntwo\nB\nCOPY <<x <<\"y\" /d/\n$v\nx\n$v\ny\n"
    one, two, three = steps_of(text)
    assert Run(script="a\n  b $c\n") == one
    assert Run(script="cat <<-'A' <<B >x\n\tone\n\tA\ntwo\nB") == two
    assert isinstance(three, Copy)
    assert ((), "/d/") == (three.sources, three.target)
    expected = (
        Heredoc(name="x", content="$v\n", expand=True),
        Heredoc(name="y", content="$v\n", expand=False),
    )
    assert expected == three.heredocs
    expanded = expand_instruction(three, {"v": "1"})
    assert isinstance(expanded, Copy)
    assert ["1\n", "$v\n"] == [here.content for here in expanded.heredocs]


def test_a_volume_is_not_empty_after_its_expansion_either() -> None:
    with pytest.raises(InvalidRequest, match="VOLUME specified can not be an empty string"):
        expand_instruction(only("VOLUME /a $b"), {"b": ""})


def test_what_on_build_triggers_is_read_when_it_triggers() -> None:
    assert OnBuild(text="/no/instruction x") == only("ONBUILD /no/instruction x")


def test_a_default_may_name_what_stands_before_it() -> None:
    expected = Arg(pairs=(("a", "1"), ("b", "1x")))
    assert expected == expand_instruction(only("ARG a=1 b=${a}x"), {})


def test_only_what_a_shell_does_not_run_is_expanded() -> None:
    env = {"a": "1", "two": "3 4"}
    assert Run(script="echo $a") == expand_instruction(only("RUN echo $a"), env)
    assert Command(line="echo $a") == expand_instruction(only("CMD echo $a"), env)
    assert Expose(text="3 4 1/udp") == expand_instruction(only("EXPOSE $two $a/udp"), env)
    assert Env(pairs=(("x1", "1 $a"),)) == expand_instruction(
        only("ENV x$a=\"$a '$a'\"".replace("'$a'", "\\$a")), env
    )
    assert WorkDir(path="/1") == expand_instruction(only("WORKDIR /$a"), env)
    expected = Copy(sources=("1",), target="/1", chown="1")
    assert expected == expand_instruction(only("COPY --chown=$a $a /$a"), env)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the Dockerfile cannot be empty"),
        ("# only this\n", "the Dockerfile cannot be empty"),
        ("ARG a\n", "no build stage in current context: the Dockerfile has no FROM"),
        ("RUN a\nFROM b\n", "dockerfile parse error on line 1: no build stage in current context"),
        ("FROM a\nNOTACOMMAND b", "dockerfile parse error on line 2: unknown instruction: NOTACOMMAND"),
        ("FROM a b", "dockerfile parse error on line 1: FROM requires either one or three arguments"),
        ("FROM a AS 1x", "dockerfile parse error on line 1: invalid name for build stage"),
        ("FROM a\nRUN", "dockerfile parse error on line 2: RUN requires at least one argument"),
        ("FROM a\nCOPY x", "dockerfile parse error on line 2: COPY requires at least two arguments"),
        ("FROM a\nCOPY --chmod=99 x y", "dockerfile parse error on line 2: invalid chmod parameter: '99'"),
        ("FROM a\nCOPY --foo=1 x y", "dockerfile parse error on line 2: unknown flag: foo"),
        ("FROM a\nCOPY --from x y", "dockerfile parse error on line 2: missing a value on flag: from"),
        ("FROM a\nCOPY --link=no x y", "dockerfile parse error on line 2: expecting boolean value for flag link"),
        ("FROM a\nENV a=1 b", "dockerfile parse error on line 2: Syntax error - can't find = in"),
        ("FROM a\nENV a", "dockerfile parse error on line 2: ENV must have two arguments"),
        ("FROM a\nSHELL /bin/sh", "dockerfile parse error on line 2: SHELL requires the arguments to be in JSON"),
        ("FROM a\nONBUILD ONBUILD RUN x", "dockerfile parse error on line 2: Chaining ONBUILD"),
        ("FROM a\nONBUILD FROM x", "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger"),
        ("FROM a\nRUN <<EOF\nx", "dockerfile parse error on line 2: unterminated heredoc: EOF"),
        ("FROM a\nHEALTHCHECK FOO", 'dockerfile parse error on line 2: Unknown type "FOO" in HEALTHCHECK'),
        ("FROM a\nHEALTHCHECK CMD []", "dockerfile parse error on line 2: Missing command after HEALTHCHECK CMD"),
        ("FROM a\nVOLUME []", "dockerfile parse error on line 2: VOLUME requires at least one argument"),
        ("FROM a\nRUN --mount=type=ssh,env=A x", "dockerfile parse error on line 2: unexpected key 'env'"),
        ("FROM a\nRUN --security=insecure x", "dockerfile parse error on line 2: --security=insecure"),
        ("# escape=x\nFROM a", "invalid ESCAPE 'x'"),
        ("# escape=`\n# escape=`\nFROM a", "dockerfile parse error on line 2: only one escape parser directive"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text: str, expected: str) -> None:
    assert complaint_about(text).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type=secret,id=a", RunMount(kind="secret", id="a", target="/run/secrets/a")),
        (
            "type=secret,dst=/x/y,required,mode=0440,uid=1",
            RunMount(kind="secret", id="y", target="/x/y", required=True, mode=0o440, uid=1),
        ),
        ("type=secret,id=a,env=TOKEN", RunMount(kind="secret", id="a", target="", env="TOKEN")),
        ("type=cache,target=/c", RunMount(kind="cache", id="/c", target="/c", writable=True)),
        (
            "type=cache,id=i,target=/c,ro,sharing=locked",
            RunMount(kind="cache", id="i", target="/c", locked=True),
        ),
        ('type=bind,"source=a,b",target=/c,rw', RunMount(kind="bind", source="a,b", target="/c", writable=True)),
        ("type=Bind,ro,from=b,target=/c", RunMount(kind="bind", source_stage="b", target="/c")),
        ("type=cache,target=/c,ro=1,readwrite=T", RunMount(kind="cache", id="/c", target="/c", writable=True)),
        (
            "type=cache,target=/c,sharing=private,from=base,source=/x",
            RunMount(
                kind="cache", id="/c", target="/c", writable=True, private=True, source="/x", source_stage="base"
            ),
        ),
        ("type=cache,target=/c,rw=0", RunMount(kind="cache", id="/c", target="/c")),
    ],
)  # fmt: skip
def test_mounts_of_a_run(text: str, expected: RunMount) -> None:
    assert expected == parse_mount(text)


@pytest.mark.parametrize(
    "text",
    [
        "type=foo",
        "type=bind",
        "type=cache,target=/a,sharing=mine",
        "type=cache,target=/a,source=/x",
        "type=tmpfs,target=/a,uid=1",
        "target=/a,rw=x",
    ],
)
def test_mounts_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_mount(text)


@given(st.text(alphabet="FROMaRUN CPY<E-=[]\"'\\#$\n,", max_size=80))
def test_no_text_does_anything_but_parse_or_complain(text: str) -> None:
    try:
        parse_dockerfile(b"FROM a\n" + text.encode())
    except InvalidRequest:
        pass
