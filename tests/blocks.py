"""A pcapng reader of its own, so that what the sink writes is judged by the format and not by our code."""

import struct


def options(data):
    found, at = {}, 0
    while at < len(data):
        code, size = struct.unpack_from("=HH", data, at)
        found[code] = data[at + 4 : at + 4 + size]
        at += 4 + (size + 3) // 4 * 4
        if code == 0:
            break
    assert at == len(data), "options fill their block"
    return found


def blocks(data):
    """[(type, body)] of a whole file; every length is checked from both ends."""
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from("=II", data, at)
        assert size % 4 == 0
        assert size >= 12
        assert struct.unpack_from("=I", data, at + size - 4)[0] == size
        found.append((kind, data[at + 8 : at + size - 4]))
        at += size
    return found


def capture(data):
    """(interfaces, packets, statistics) of one section: dicts."""
    (first, section), *rest = blocks(data)
    assert first == 0x0A0D0D0A
    assert struct.unpack_from("=IHH", section) == (0x1A2B3C4D, 1, 0)
    interfaces, packets, statistics = [], [], []
    for kind, body in rest:
        if kind == 1:
            linktype, _, snaplen = struct.unpack_from("=HHI", body)
            found = options(body[8:])
            interfaces.append({
                "linktype": linktype, "snaplen": snaplen, "name": found[2].decode(), "tsresol": found[9][0],
                "description": found[3].decode(), "filter": found[11][1:].decode(),
            })  # fmt: skip
        elif kind == 6:
            interface, high, low, kept, length = struct.unpack_from("=IIIII", body)
            padded = (kept + 3) // 4 * 4
            found = options(body[20 + padded :])
            packets.append({
                "interface": interface, "time_ns": high << 32 | low, "data": body[20 : 20 + kept], "length": length,
                "flags": struct.unpack("=I", found[2])[0],
                "queue": struct.unpack("=I", found[6])[0] if 6 in found else None, "verdict": found.get(7),
                "comment": found[1].decode() if 1 in found else None,
            })  # fmt: skip
        else:
            assert kind == 5
            found = options(body[12:])
            names = ("received", "dropped", "accepted", "os_dropped", "delivered")
            statistics.append({"interface": struct.unpack_from("=I", body)[0]} | {
                name: struct.unpack("=Q", found[code])[0] for code, name in enumerate(names, 4)
            })  # fmt: skip
    return interfaces, packets, statistics
