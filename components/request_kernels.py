"""Requests on the wire → the places of their ids and values.

The rules are those of `components.kernels`. A request stands in the slot of its matrix already: `size` bytes of
`heap` from `at` on, and all places are places in this heap. The reference is `workers.requests` with protobuf
messages: what `read_request`, `read_slates` and `read_entities` take is a message to protobuf, too, and has the
same contents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from components.kernels import (
    I32,
    I32_OUT,
    I64,
    INT,
    MALFORMED,
    NO_ROOM,
    U8,
    U8_OUT,
    _ascii,
    _callee,
    _copy,
    _inline,
    _kernel,
    _length,
    _put_varint,
    _skip,
    _tag,
    _varint,
)
from components.value_kernels import _utf8

__all__ = [
    "COLUMN_PARTS",
    "NEITHER",
    "PAIRS",
    "SLATES",
    "first_misfit",
    "read_entities",
    "read_request",
    "read_slates",
    "scan_slates",
]

I64_OUT = types.int64[::1]

NEITHER, PAIRS, SLATES = 0, 1, 2
"""What a request has besides its targets."""

MODEL, TRACKING, CONTEXT, SCHEMA, OWN_SCHEMA = 0x0A, 0x12, 0x1A, 0x22, 0x2A  # tags of a request's fields
GROUPS = 0x32  # pairs or slates


@_inline
def _text(data, at, end):
    """(start, stop) of a string whose length stands at `at`; MALFORMED when it runs over or is not UTF-8."""
    start, stop = _length(data, at, end)
    if start >= 0 and not _ascii(data, start, stop) and not _utf8(data, start, stop):
        return MALFORMED, MALFORMED
    return start, stop


@_inline
def _usual_target(data, at, end, tag):
    """(start, stop) of the id of a target that is nothing but a short id; MALFORMED for any other, and no target.

    Nearly all are, and then neither fields nor lengths need be looked at one by one.
    """
    if at + 4 <= end and data[at] == tag and data[at + 2] == 0x0A:
        size = np.int64(data[at + 3])
        stop = at + 4 + size
        if size < 0x7E and np.int64(data[at + 1]) == size + 2 and stop <= end:
            return at + 4, stop
    return MALFORMED, MALFORMED


@_inline
def _usual_targets(data, at, end, tag):
    """(how many usual targets stand here, one after the other, the place after them); 0 when one is not ASCII."""
    count = 0
    place = at
    start, stop = _usual_target(data, place, end, tag)
    while start >= 0:
        count += 1
        place = stop
        start, stop = _usual_target(data, place, end, tag)
    # Their tags and lengths are less than 0x80, too.
    return (count, place) if _ascii(data, at, place) else (0, at)


@_callee
def _put_context(heap, at, end, starts, sizes, number, rest, kept):
    """Notes the value (field 2) of a ContextFeature and puts the feature without it into `rest`; its new end.

    For a feature that was looked through before.
    """
    starts[number] = sizes[number] = 0
    inner = at
    left = end - at
    while inner < end:
        begin = inner
        tag, inner = _tag(heap, inner, end)
        if tag == 0x12:
            start, inner = _length(heap, inner, end)
            starts[number], sizes[number] = start, inner - start
            left -= inner - begin
        else:
            inner = _skip(heap, inner, end, tag)
    rest[kept] = CONTEXT
    kept = _put_varint(rest, kept + 1, left)
    while at < end:
        begin = at
        tag, at = _tag(heap, at, end)
        at = _skip(heap, at, end, tag)
        if tag != 0x12:
            kept = _copy(heap, begin, at - begin, rest, kept)
    return kept


@_kernel(types.UniTuple(INT, 9)(U8, INT, INT, INT, I64_OUT, I32_OUT, U8_OUT))
def read_request(heap: Any, at: Any, size: Any, groups: Any, starts: Any, sizes: Any, rest: Any) -> Any:
    """Reads a PointWiseRequest, or one with `groups` (PAIRS, SLATES), but for those groups.

    Returns (code, rows, values, context, kept, where model_config_id starts and ends, likewise tracking_id):
    numbers of targets, of the most feature values of a target, and of context features; `kept`, how many bytes
    of `rest` are written. The two texts are places in the body, not in the heap.

    starts, sizes: the places of the values of the context features, then of the ids [rows], then of the feature
    values [values, rows]; size 0 for none. `rest`: the message without all this, without model_config_id,
    tracking_id and tenant_id, and without groups: what is the same in most requests for a config. Code NO_ROOM:
    more than context + rows × (1 + values) places are there, or fewer bytes of `rest` than `size`.
    """
    of_targets, of_tenant = (0x2A, 0x32) if groups == NEITHER else (0x3A, 0x42)
    of_groups = 0 if groups == NEITHER else GROUPS
    of_own_schema = 0 if groups == NEITHER else OWN_SCHEMA
    end = at + size
    rows = values = context = kept = 0
    model = model_end = tracking = tracking_end = 0
    if at < 0 or size < 0 or end > heap.shape[0]:
        return MALFORMED, 0, 0, 0, 0, 0, 0, 0, 0
    place = at
    ascii_ids = True
    while place < end:
        if ascii_ids and heap[place] == of_targets:
            usual, place = _usual_targets(heap, place, end, of_targets)
            rows += usual
            ascii_ids = usual > 0  # else each is looked at by itself, this one and all that follow
            if ascii_ids:
                continue
        tag, place = _tag(heap, place, end)
        if place < 0:
            return place, 0, 0, 0, 0, 0, 0, 0, 0
        if tag in (of_targets, CONTEXT, SCHEMA, of_own_schema):
            # Each has a string in field 1, and targets have their values in field 2.
            inner, place = _length(heap, place, end)
            own = 0
            while 0 <= inner < place:
                tag_within, inner = _tag(heap, inner, place)
                if inner < 0:
                    return inner, 0, 0, 0, 0, 0, 0, 0, 0
                if tag_within == 0x0A:
                    _, inner = _text(heap, inner, place)
                else:
                    own += tag_within == 0x12
                    inner = _skip(heap, inner, place, tag_within)
            if inner < 0:
                return inner, 0, 0, 0, 0, 0, 0, 0, 0
            if tag == of_targets:
                rows += 1
                values = max(values, own)
            context += tag == CONTEXT
        elif tag in (MODEL, TRACKING, of_tenant):
            start, place = _text(heap, place, end)
            if tag == MODEL:
                model, model_end = start - at, place - at
            elif tag == TRACKING:
                tracking, tracking_end = start - at, place - at
        else:
            place = _skip(heap, place, end, tag)
        if place < 0:
            return place, 0, 0, 0, 0, 0, 0, 0, 0
    places = context + rows * (1 + values)
    if places > starts.shape[0] or places > sizes.shape[0] or size > rest.shape[0]:
        return NO_ROOM, rows, values, context, 0, 0, 0, 0, 0
    row = context
    number = 0
    while at < end:
        start, stop = _usual_target(heap, at, end, of_targets)
        if start >= 0:
            for line in range(1, values + 1):
                starts[row + line * rows] = 0
                sizes[row + line * rows] = 0
            starts[row] = start
            sizes[row] = stop - start
            row += 1
            at = stop
            continue
        begin = at
        tag, at = _tag(heap, at, end)
        if tag == of_targets:
            inner, at = _length(heap, at, end)
            for line in range(values + 1):
                starts[row + line * rows] = 0
                sizes[row + line * rows] = 0
            place = row
            while inner < at:
                tag, inner = _tag(heap, inner, at)
                if tag == 0x0A or tag == 0x12:
                    start, inner = _length(heap, inner, at)
                    of_value = row
                    if tag == 0x12:
                        place += rows
                        of_value = place
                    starts[of_value] = start
                    sizes[of_value] = inner - start
                else:
                    inner = _skip(heap, inner, at, tag)
            row += 1
        elif tag == CONTEXT:
            start, at = _length(heap, at, end)
            kept = _put_context(heap, start, at, starts, sizes, number, rest, kept)
            number += 1
        else:
            at = _skip(heap, at, end, tag)
            if tag != MODEL and tag != TRACKING and tag != of_tenant and tag != of_groups:
                kept = _copy(heap, begin, at - begin, rest, kept)
    return 0, rows, values, context, kept, model, model_end, tracking, tracking_end


@_kernel(INT(I32, INT, INT, INT, INT, I64))
def first_misfit(sizes: Any, context: Any, rows: Any, values: Any, first: Any, wanted: Any) -> int:
    """The first column of a request with a value whose length does not fit its type; −1 for none.

    sizes: of `context` single values, and from `first` on of features [values, rows]. wanted: of each of these
    columns how many bytes a value has; −n: a multiple of n bytes; 0: any number. An empty value is none, and fits.
    """
    for column in range(min(wanted.shape[0], context + values)):
        want = wanted[column]
        if want == 0:
            continue
        count = 1 if column < context else rows
        begin = column if column < context else first + (column - context) * rows
        if begin < 0 or begin + count > sizes.shape[0]:
            return column
        for place in range(begin, begin + count):
            size = np.int64(sizes[place])
            if size and (size % -want if want < 0 else size != want):
                return column
    return -1


# --- pairs and slates


@_kernel(types.UniTuple(INT, 5)(U8, INT, INT, INT))
def scan_slates(heap: Any, at: Any, size: Any, groups: Any) -> Any:
    """Counts the pairs or slates (`groups`) of a request that `read_request` has taken.

    Returns (code, how many there are, targets that they name, the most feature values of one, their bytes without
    tags and lengths).
    """
    end = at + size
    count = indices = values = bytes_ = 0
    feature = 0x1A if groups == PAIRS else 0x12
    if at < 0 or size < 0 or end > heap.shape[0]:
        return MALFORMED, 0, 0, 0, 0
    while at < end:
        tag, at = _tag(heap, at, end)
        if at >= 0 and tag != GROUPS:
            at = _skip(heap, at, end, tag)
        if at < 0:
            return at, 0, 0, 0, 0
        if tag != GROUPS:
            continue
        inner, at = _length(heap, at, end)
        if inner < 0:
            return MALFORMED, 0, 0, 0, 0
        own = 0
        count += 1
        bytes_ += at - inner
        if groups == PAIRS:
            indices += 2
        while inner < at:
            tag, inner = _tag(heap, inner, at)
            if inner < 0:
                return inner, 0, 0, 0, 0
            if groups == PAIRS or tag != 0x0A:
                own += tag == feature
                indices += groups == SLATES and tag == 0x08
                inner = _skip(heap, inner, at, tag)
                if inner < 0:
                    return inner, 0, 0, 0, 0
                continue
            start, inner = _length(heap, inner, at)
            if start < 0:
                return MALFORMED, 0, 0, 0, 0
            for i in range(start, inner):
                indices += heap[i] < 0x80  # packed: every number ends with such a byte
        values = max(values, own)
    return 0, count, indices, values, bytes_


@_kernel(INT(U8, INT, INT, INT, I32_OUT, I64_OUT, I64_OUT, I32_OUT))
def read_slates(
    heap: Any, at: Any, size: Any, groups: Any, rows: Any, bounds: Any, starts: Any, sizes: Any
) -> int:
    """Reads the pairs or slates that `scan_slates` counted; returns how many there were.

    rows: the target indices, slate after slate, those of slate i at bounds[i] … bounds[i + 1] − 1; bounds has one
    more than there are slates. starts, sizes: the places of their feature values [values, slates], size 0 where a
    slate has fewer. MALFORMED also: an index of more than five bytes, as negative ones have.
    """
    end = at + size
    slates = bounds.shape[0] - 1
    slate = 0
    place = 0
    feature = 0x1A if groups == PAIRS else 0x12
    if at < 0 or size < 0 or end > heap.shape[0]:
        return MALFORMED
    if slates < 0:
        return NO_ROOM
    starts[:] = 0
    sizes[:] = 0
    bounds[0] = 0
    while at < end:
        tag, at = _tag(heap, at, end)
        if at < 0:
            return at
        if tag != GROUPS:
            at = _skip(heap, at, end, tag)
            if at < 0:
                return at
            continue
        inner, at = _length(heap, at, end)
        if inner < 0:
            return MALFORMED
        if slate >= slates:
            return NO_ROOM
        if groups == PAIRS:
            if place + 2 > rows.shape[0]:
                return NO_ROOM
            rows[place] = rows[place + 1] = 0
        value = slate
        while inner < at:
            tag, inner = _tag(heap, inner, at)
            if inner < 0:
                return inner
            if tag == feature:
                start, inner = _length(heap, inner, at)
                if start < 0:
                    return MALFORMED
                if value >= starts.shape[0] or value >= sizes.shape[0]:
                    return NO_ROOM
                starts[value], sizes[value] = start, inner - start
                value += slates
            elif tag == 0x08 or (tag == 0x10 and groups == PAIRS) or (tag == 0x0A and groups == SLATES):
                stop = at
                if tag == 0x0A:
                    inner, stop = _length(heap, inner, at)
                    if inner < 0:
                        return MALFORMED
                while inner < stop:
                    index, inner = _varint(heap, inner, stop)
                    if inner < 0:
                        return inner
                    if groups == PAIRS:
                        rows[place + (tag == 0x10)] = np.int32(index & 0xFFFFFFFF)
                    else:
                        if place >= rows.shape[0]:
                            return NO_ROOM
                        rows[place] = np.int32(index & 0xFFFFFFFF)
                        place += 1
                    if tag != 0x0A:
                        break
            else:
                inner = _skip(heap, inner, at, tag)
                if inner < 0:
                    return inner
        if groups == PAIRS:
            place += 2
        slate += 1
        bounds[slate] = place
    return slate


# --- RetrieveModelScore

NAME, NAME_END, FIRST, COUNT, FEATURE = range(5)  # of a column that `read_entities` found
COLUMN_PARTS = 5


@_callee
def _read_name(heap, at, end):
    """(start, stop) of the last string in field 1 of a message; negative when anything in the message is wrong."""
    start = stop = np.int64(0)
    while at < end:
        tag, at = _tag(heap, at, end)
        if at >= 0 and tag == 0x0A:
            start, stop = _text(heap, at, end)
            at = stop
        elif at >= 0:
            at = _skip(heap, at, end, tag)
        if at < 0:
            return at, at
    return start, stop


@_callee
def _read_column(heap, at, end, feature, columns, number, starts, sizes, place):
    """Notes an Entity, or a Feature (`feature` is 1 then), as column `number`; where the next place is, or a code.

    Both have a name in field 1 and texts in field 2.
    """
    if COLUMN_PARTS * (number + 1) > columns.shape[0]:
        return np.int64(NO_ROOM)
    column = columns[COLUMN_PARTS * number :]
    column[NAME], column[NAME_END] = _read_name(heap, at, end)
    if column[NAME] < 0:
        return column[NAME]
    first = place
    while at < end:
        tag, at = _tag(heap, at, end)
        if tag == 0x12:
            start, at = _text(heap, at, end)
            if start < 0:
                return start
            if place >= starts.shape[0] or place >= sizes.shape[0]:
                return np.int64(NO_ROOM)
            starts[place], sizes[place] = start, at - start
            place += 1
        else:
            at = _skip(heap, at, end, tag)
    column[FIRST], column[COUNT], column[FEATURE] = first, place - first, feature
    return place


@_kernel(types.UniTuple(INT, 6)(U8, INT, INT, I64_OUT, I64_OUT, I32_OUT))
def read_entities(heap: Any, at: Any, size: Any, columns: Any, starts: Any, sizes: Any) -> Any:
    """Reads an InferflowRequestProto.

    Returns (code, columns, where model_config_id starts and ends, likewise tracking_id); the two texts are places
    in the body, not in the heap. columns [n × COLUMN_PARTS]: of each Entity, and behind it of each Feature of it,
    where its name starts and ends in the heap, its first place, how many places it has, and 1 for a Feature.
    starts, sizes: the places of ids and feature values. Code NO_ROOM: there are more columns or places than there
    is room for; together they are never more than one for two bytes of the request.
    """
    end = at + size
    model = model_end = tracking = tracking_end = np.int64(0)
    if at < 0 or size < 0 or end > heap.shape[0]:
        return MALFORMED, 0, 0, 0, 0, 0
    begin = at
    number = 0
    place = np.int64(0)
    while at < end:
        tag, at = _tag(heap, at, end)
        if at >= 0 and tag == 0x0A:
            inner, at = _length(heap, at, end)
            if inner >= 0:
                place = _read_column(heap, inner, at, 0, columns, number, starts, sizes, place)
                if place < 0:
                    return place, 0, 0, 0, 0, 0
                number += 1
            while 0 <= inner < at:
                tag, inner = _tag(heap, inner, at)
                if tag != 0x1A:
                    inner = _skip(heap, inner, at, tag)
                    continue
                start, inner = _length(heap, inner, at)
                place = _read_column(heap, start, inner, 1, columns, number, starts, sizes, place)
                if place < 0:
                    return place, 0, 0, 0, 0, 0
                number += 1
        elif at >= 0 and (tag == 0x12 or tag == 0x1A):
            start, at = _text(heap, at, end)
            if tag == 0x12:
                model, model_end = start - begin, at - begin
            else:
                tracking, tracking_end = start - begin, at - begin
        elif at >= 0:
            at = _skip(heap, at, end, tag)
        if at < 0:
            return at, 0, 0, 0, 0, 0
    return 0, number, model, model_end, tracking, tracking_end
