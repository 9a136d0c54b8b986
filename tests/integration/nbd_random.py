#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Random requests over several libnbd connections against a copy in memory; then what a client should be refused.

  nbd_random.py URI [SEED]
"""
import random
import sys
import time

import nbd

SEED = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
SPAN = 32 << 20
BLOCK = 64 << 10


def connect(uri):
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    handle.set_strict_mode(0)
    handle.set_request_structured_replies(random.random() < 0.7)
    handle.connect_uri(uri)
    return handle


def expect_error(errno, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == errno, f"{error.errnum} instead of {errno}"
        return
    raise AssertionError("no error")


def modify(handle, model, offset, length):
    fua = nbd.CMD_FLAG_FUA if random.random() < 0.1 else 0
    kind = random.randrange(4)
    if kind == 0:
        handle.zero(length, offset, flags=fua | (nbd.CMD_FLAG_NO_HOLE if random.random() < 0.5 else 0))
        model[offset:offset + length] = bytes(length)
    elif kind == 1:
        handle.trim(length, offset, flags=fua)
        # Its content is open: whatever is there now stays, as zeros or as it was.
        now = handle.pread(length, offset)
        was = model[offset:offset + length]
        assert all(n in (0, w) for n, w in zip(now, was))
        model[offset:offset + length] = now
    else:
        data = random.randbytes(length)
        handle.pwrite(data, offset, flags=fua)
        model[offset:offset + length] = data


def one_by_one(handles, model):
    for turn in range(1500):
        length = random.randrange(1, BLOCK if turn % 50 else 3 << 20)
        offset = random.randrange(SPAN - length)
        if random.random() < 0.5:
            offset, length = offset & ~4095, (length + 4095) & ~4095
        handle = random.choice(handles)
        if random.random() < 0.5:
            modify(handle, model, offset, length)
        else:
            assert handle.pread(length, offset) == model[offset:offset + length], f"bytes at {offset}+{length}"
        if random.random() < 0.05:
            random.choice(handles).flush()


def many_at_once(handles, model):
    """Every block has one writer at a time; reads of blocks that nobody writes."""
    for _ in range(30):
        blocks = random.sample(range(SPAN // BLOCK), 120)
        reads = []
        for number, block in enumerate(blocks):
            handle = handles[number % len(handles)]
            offset = block * BLOCK
            if number % 2:
                data = random.randbytes(BLOCK)
                handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset)
                model[offset:offset + BLOCK] = data
            else:
                buffer = nbd.Buffer(BLOCK)
                handle.aio_pread(buffer, offset)
                reads.append((offset, buffer))
        while any(handle.aio_in_flight() for handle in handles):
            for handle in handles:
                if handle.aio_in_flight():
                    handle.poll(100)
                # Completed commands count as in flight until they are retired.
                while handle.aio_in_flight() and handle.aio_peek_command_completed() > 0:
                    handle.aio_command_completed(handle.aio_peek_command_completed())
        for offset, buffer in reads:
            assert buffer.to_bytearray() == model[offset:offset + BLOCK], f"bytes at {offset}"


def status(handle, model):
    """What is called zero is zero; the extents cover what was asked for from its start."""
    at = 0
    while at < SPAN:
        got = []
        handle.block_status(SPAN - at, at, lambda name, offset, entries, error: got.append((offset, entries)))
        assert got and got[0][0] == at
        for length, flags in zip(got[0][1][::2], got[0][1][1::2]):
            if flags & 2:
                assert not any(model[at:at + length]), f"zeros at {at}+{length}"
            at += length
    one = []
    handle.block_status(SPAN, 0, lambda name, offset, entries, error: one.extend(entries), flags=nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 2


def refusals(uri):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.connect_uri(uri)
    size = handle.get_size()
    einval, enospc = 22, 28
    expect_error(einval, handle.pread, 1, size)
    expect_error(enospc, handle.pwrite, b"x" * 4096, size - 1)
    expect_error(enospc, handle.zero, 4096, size - 1)
    expect_error(einval, handle.trim, 4096, size - 1)
    expect_error(einval, handle.pread, 33 << 20, 0)
    expect_error(75, handle.pread_structured, 20 << 20, 0, lambda *_: 0, flags=nbd.CMD_FLAG_DF)
    expect_error(95, handle.zero, 4096, 0, flags=nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert len(handle.pread(32 << 20, 0)) == 32 << 20
    handle.shutdown()


def main():
    print("seed", SEED)
    random.seed(SEED)
    handles = [connect(sys.argv[1]) for _ in range(4)]
    model = bytearray(handles[0].pread(SPAN, 0))
    one_by_one(handles, model)
    many_at_once(handles, model)
    if handles[0].can_meta_context("base:allocation"):
        status(handles[0], model)
    handles[0].flush()
    with_status = nbd.NBD()
    with_status.add_meta_context("base:allocation")
    with_status.connect_uri(sys.argv[1])
    status(with_status, model)
    assert with_status.pread(SPAN, 0) == model
    for handle in handles:
        handle.shutdown()
    refusals(sys.argv[1])


main()
