"""One question, one answer rendered without the template, where that gives the same text.

A template is separable when it only ever writes out a message's content, whole or trimmed: then
what stands around contents cannot depend on them, and one rendering shows it. The template's syntax
tree decides; a template that looks at contents in any other way renders every row itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import nodes

from trainyard.data.template import (
    GenerationBlocks,
    RowNotRendered,
    Template,
    template_environment,
)

ASKED, TOLD = "\ue0a0asked\ue0a1", "\ue0a2told\ue0a3"
Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Frame:
    """What a template writes before, between and after one question and one answer."""

    template: Template
    before: str
    between: str
    after: str
    head: str
    """Between the question and where the answer's turn begins; `between` starts with it."""
    marked: tuple[int, int] | None
    """Of a template with generation blocks: characters of `between` and of `after` inside one."""
    trims: tuple[bool, bool]

    @classmethod
    def of(cls, template: Template) -> "Frame | None":
        """None where rows must be rendered one by one."""
        if template.source is None or not is_separable(template.source):
            return None
        turns = [("user", f" {ASKED} "), ("assistant", f" {TOLD} ")]
        talk = [{"role": role, "content": content} for role, content in turns]
        try:
            text, spans = template.render_row({"kind": "sft", "messages": talk})
            prompt = template.render_prompt(talk[:1])
        except RowNotRendered:
            return None
        if text.count(ASKED) != 1 or text.count(TOLD) != 1 or prompt.count(ASKED) != 1:
            return None
        trims = f" {ASKED} " not in text, f" {TOLD} " not in text
        asked, told = (c.strip() if t else c for (_, c), t in zip(turns, trims, strict=True))
        if f" {ASKED} " in prompt and trims[0]:
            return None
        before, _, rest = text.partition(asked)
        between, _, after = rest.partition(told)
        prompt_before, _, head = prompt.partition(asked)
        if prompt_before != before or not between.startswith(head):
            return None
        marked = None
        if template.marks_generation:
            ((start, end),) = spans
            at = len(before) + len(asked) + len(between)
            bare = template.render(talk, mark=True)
            close = bare.index(GenerationBlocks.CLOSE) - bare.index(told) - len(told)
            marked = at - start, close
            if close < 0 or marked[0] < 0 or end < at:
                return None
        return cls(template, before, between, after, head, marked, trims)

    def render(self, asked: str, told: str) -> tuple[str, Spans]:
        """As `Template.render_row` of these two messages."""
        if self.trims[0]:
            asked = asked.strip()
        if self.trims[1]:
            told = told.strip()
        text = f"{self.before}{asked}{self.between}{told}{self.after}"
        if self.marked is None:
            start = len(self.before) + len(asked) + len(self.head)
            return text, [(start, self.template.turn_end(text, start, len(text)))]
        start = len(self.before) + len(asked) + len(self.between) - self.marked[0]
        end = len(text) - len(self.after) + self.marked[1]
        return text, [self.template.with_eos(text, (start, end))]


def is_separable(source: str) -> bool:
    """Whether contents of messages are only written out, and no message is used as a whole."""
    tree = template_environment().parse(source)
    lists = {"messages"}
    names: set[str] = set()
    for loop in tree.find_all(nodes.For):
        if isinstance(loop.iter, nodes.Name) and loop.iter.name in lists:
            if not isinstance(loop.target, nodes.Name):
                return False
            names.add(loop.target.name)
    if any(name.ctx != "load" and name.name in lists for name in tree.find_all(nodes.Name)):
        return False
    captures = (nodes.AssignBlock, nodes.FilterBlock, nodes.Macro, nodes.Include, nodes.Import)
    if any(tree.find(kind) for kind in (*captures, nodes.FromImport, nodes.Extends, nodes.Block)):
        return False
    return all(_is_harmless(node, above, names) for node, above in _walk(tree, ()))


def _walk(
    node: nodes.Node, above: tuple[nodes.Node, ...]
) -> Iterator[tuple[nodes.Node, tuple[nodes.Node, ...]]]:
    yield node, above
    for child in node.iter_child_nodes():
        yield from _walk(child, (node, *above))


def _is_harmless(node: nodes.Node, above: tuple[nodes.Node, ...], names: set[str]) -> bool:
    if isinstance(node, nodes.Getattr | nodes.Getitem):
        key = _key(node)
        if key in ("previtem", "nextitem", "changed"):
            return False
        if key == "content":
            around = [*above[_trims(above[0]) :]]
            while isinstance(around[0], nodes.Add | nodes.Concat):
                del around[0]
            return isinstance(around[0], nodes.Output)
        return True
    if not isinstance(node, nodes.Name) or node.ctx != "load":
        return True
    parent = above[0]
    if node.name == "messages":
        if isinstance(parent, nodes.For) and parent.iter is node:
            return True
        if isinstance(parent, nodes.Filter) and parent.name in ("length", "count"):
            return True
        indexed = isinstance(parent, nodes.Getitem) and isinstance(_key(parent), int)
        return indexed and isinstance(_key(above[1]), str)
    if node.name in names:
        return isinstance(_key(parent), str)
    return node.name not in ("self", "caller", "varargs", "kwargs")


def _key(node: nodes.Node) -> object:
    """The constant attribute or item that `node` takes; None for anything else."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value
    return None


def _trims(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Filter) and node.name == "trim" and not node.args
