"""The sweep of torn writes: what it calls recovered and detected, and that a wrong entry or a lost one is neither."""

import msgspec

from node.bench.torn import Damage, apply_damage, judge_opening, write_log


async def test_damage_of_each_kind_is_met_and_a_wrong_or_lost_entry_fails(tmp_path):
    path = tmp_path / "blocks"
    entries, ends = await write_log(path)
    file = path / "00000000.log"
    image = file.read_bytes()
    assert len(image) >= 64 * 1024

    def judge(damage, offset, expected=entries, limits=ends):
        file.write_bytes(apply_damage(image, damage, offset))
        return judge_opening(path, expected, limits, damage, offset)

    assert judge(Damage.CUT, ends[3] + 5) == judge(Damage.ZEROS, ends[3] + 5) == "recovered"
    assert judge(Damage.FLIP, ends[3] + 5) == judge(Damage.FLIP, 5) == "detected"
    assert judge(Damage.FLIP, ends[-1] - 5) == "recovered"
    other = [entries[0], msgspec.structs.replace(entries[1], payload=b"other"), *entries[2:]]
    assert judge(Damage.CUT, ends[3] + 5, expected=other) == "wrong"
    assert judge(Damage.CUT, ends[3] + 5, limits=[0, *ends]) == "wrong"
