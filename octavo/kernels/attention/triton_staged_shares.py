"""How attention over staged pages is dealt out evenly, in Gluon: the pages of all contexts, laid end to end, are cut
into runs of one length (to a page), one for each program of a KV head. A run may hold the end of one context, whole
ones and the beginning of another; however different the contexts, all programs take the same time.

Of a program only the first and the last segment can share their context with others, so two places for what it leaves
to be merged suffice: 2 * program, and 2 * program + 1 for a segment that does not stand at its run's beginning.

Where programs are many for each context, none gets pages of two contexts: each is cut by itself, into as many runs as
its length is worth. A second beginning would take longer than it evens out.

    deal    (pages of a run, how many runs are a page longer, the first program of this context, how many it has), the
            last two 0 where runs go across contexts
    share   of a segment: (the first program with pages of its context, how many there are, where that first one leaves
            its part, where this one does)
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

__all__ = ["own_share", "pages_of", "part_at", "parts_of"]

_AT_ONCE = gl.constexpr(128)
_APART = gl.constexpr(4)
_LENGTHS = gl.constexpr(gl.BlockedLayout([4], [32], [1], [0]))


@gluon.jit
def _plus(a, b):
    return a + b


@gluon.jit
def pages_of(contexts, query_start, sequence, window, PAGE: gl.constexpr, WINDOW: gl.constexpr):
    """The first page that a sequence's new tokens see, and how many from there on."""
    context = gl.load(contexts + sequence)
    first = 0
    if WINDOW:
        new = gl.load(query_start + sequence + 1) - gl.load(query_start + sequence)
        first = gl.maximum(context - new - window + 1, 0) // PAGE
    return first, (context + (PAGE - 1)) // PAGE - first


@gluon.jit
def _several(contexts, query_start, first_sequence, begin, sequences, window, PAGE: gl.constexpr, WINDOW: gl.constexpr):
    """The pages of sequences `begin` on, zero behind the last."""
    sequence = begin + gl.arange(0, _AT_ONCE, layout=_LENGTHS)
    there = first_sequence + gl.minimum(sequence, sequences - 1)
    count = pages_of(contexts, query_start, there, window, PAGE, WINDOW)[1]
    return gl.where(sequence < sequences, count, 0)


@gluon.jit
def _begin_of(program, deal):
    """Where a program's run begins: the first `longer` are a page longer than the others."""
    return program * deal[0] + gl.minimum(program, deal[1])


@gluon.jit
def _owner_of(page, deal):
    """The program whose run a page is in."""
    behind = page - deal[1] * (deal[0] + 1)
    return gl.where(behind < 0, page // (deal[0] + 1), deal[1] + behind // deal[0])


@gluon.jit
def own_share(
    contexts, query_start, first_sequence, sequences, window, PAGE: gl.constexpr, LEAST: gl.constexpr,
    WINDOW: gl.constexpr,
):  # fmt: skip
    """A program's run [cursor, end), the sequence in which it begins, where that one's pages begin, and the deal. Pages
    are counted over all contexts, or, where each is cut by itself, from the beginning of this one. An empty run has
    nothing to do."""
    program, programs = gl.program_id(1), gl.num_programs(1)
    head = _several(contexts, query_start, first_sequence, 0, sequences, window, PAGE, WINDOW)
    total = gl.sum(head, 0)
    for begin in range(_AT_ONCE, sequences, _AT_ONCE):
        total += gl.sum(_several(contexts, query_start, first_sequence, begin, sequences, window, PAGE, WINDOW), 0)
    programs = gl.maximum(gl.minimum(programs, total // LEAST), 1)
    apart = (programs >= _APART * sequences) & (sequences <= _AT_ONCE)
    if apart:
        cursor, end, sequence, first, parts = _own_context(
            head, program, _programs_a_page(head, total, programs, sequences)
        )
        base, deal = 0, (1, 0, first, parts)
    else:
        alike = programs // sequences * sequences  # contexts of one length are cut alike
        if alike * 8 >= programs * 7:
            programs = alike
        size = total // programs
        longer = total - size * programs
        deal = (size, longer, 0, 0)
        cursor = _begin_of(program, deal)
        end = gl.where(program < programs, _begin_of(program + 1, deal), cursor)
        sequence, base, before = -1, 0, 0
        for begin in range(0, sequences, _AT_ONCE):
            count = head
            if begin > 0:
                count = _several(contexts, query_start, first_sequence, begin, sequences, window, PAGE, WINDOW)
            begins = before + gl.associative_scan(count, 0, _plus) - count
            here = (begins <= cursor) & (count > 0)
            sequence += gl.sum(here.to(gl.int32), 0)
            base = gl.maximum(base, gl.max(gl.where(here, begins, 0), 0))
            before += gl.sum(count, 0)
    return cursor, end, sequence, base, deal


@gluon.jit
def _programs_a_page(pages, total, programs, sequences):
    """How many programs a page is worth, such that contexts rounded up to whole programs have no more than there are:
    the best of a few, the first of which always fits. (Its `- 1`, and the factor, are for what fp32 rounds.)"""
    most, of_all = gl.num_programs(1), 1.0 / total.to(gl.float32)
    best = gl.minimum(programs, most - sequences - 1).to(gl.float32) * of_all
    for quarters in gl.static_range(4):
        several = (programs - sequences * (3 - quarters) // 4).to(gl.float32) * of_all * (1.0 - 1e-5)
        fits = gl.sum(gl.ceil(pages.to(gl.float32) * several).to(gl.int32), 0) <= most
        best = gl.where(fits & (several > best), several, best)
    return best


@gluon.jit
def _own_context(pages, program, programs_a_page):
    """Where each context is cut by itself, into as many runs as its `pages` are worth, rounded up: the run of a program
    in its sequence, which one that is, the first program of it, and how many it has."""
    worth = gl.ceil(pages.to(gl.float32) * programs_a_page).to(gl.int32)
    begins = gl.associative_scan(worth, 0, _plus) - worth
    own = (begins <= program) & (program < begins + worth)
    first, parts, count = (
        gl.sum(gl.where(own, begins, 0), 0), gl.sum(gl.where(own, worth, 0), 0), gl.sum(gl.where(own, pages, 0), 0)
    )  # fmt: skip
    sequence = gl.sum(((begins <= program) & (worth > 0)).to(gl.int32), 0) - 1
    pages_a_part = count.to(gl.float32) / gl.maximum(parts, 1).to(gl.float32)
    number = program - first
    cursor = (number.to(gl.float32) * pages_a_part).to(gl.int32)
    end = gl.where(number + 1 >= parts, count, ((number + 1).to(gl.float32) * pages_a_part).to(gl.int32))
    return cursor, end, sequence, first, parts


@gluon.jit
def parts_of(base, count, cursor, deal):
    """Of a context whose pages are [base, base + count) and a segment of it that begins at `cursor`: the first program
    that has pages of it, how many have, where that first one leaves its part, and where this segment's goes."""
    program = gl.program_id(1)
    first, parts = deal[2], deal[3]
    head, own = 2 * first, 2 * program
    if parts == 0:
        first = _owner_of(base, deal)
        parts = _owner_of(base + count - 1, deal) - first + 1
        head = 2 * first + (base > _begin_of(first, deal)).to(gl.int32)
        own += (cursor > _begin_of(program, deal)).to(gl.int32)
    return first, parts, head, own


@gluon.jit
def part_at(number, share):
    """Where part `number` of a context is."""
    return gl.where(number == 0, share[2], 2 * (share[0] + number))
