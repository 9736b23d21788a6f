"""Exports of recorded requests: whole, harmless, bounded."""

import polars as pl
import pytest

from capture import errors, exports
from tests.capture import shop


def test_an_export_holds_the_rows_that_pass(shop_settings, tmp_path):
    shop.write(shop_settings, *(shop.payload(place) for place in range(5)))
    shop.label(shop_settings, 7, 9, client_request_id="client-3")
    path = tmp_path / "out.parquet"
    arguments = {"endpoint": "shop", "format": "parquet", "path": str(path), "feature.x": "2.."}
    assert exports.export(shop_settings, arguments) == {"path": str(path), "rows": 3}
    assert pl.read_parquet(path).select("x", "label").rows() == [(2, None), (3, 7), (4, None)]


def test_no_cell_of_a_csv_export_is_a_formula(shop_settings, tmp_path):
    nasty = ["=1+1", "+1", "-1", "@a", "\tx", "\rx", 'a,"b"\n', "=é"]
    rows_ = [{"s": text, "=n": -place} for place, text in enumerate(nasty)]
    shop.write(shop_settings, shop.payload(0, rows_, looked_up=None))
    path = tmp_path / "out.csv"
    exports.export(shop_settings, {"table": shop.TABLE, "format": "csv", "path": str(path)})
    found = pl.read_csv(path, infer_schema=False)
    expected = [f"'{text}" if text[0] in "=+-@\t\r" else text for text in nasty]
    assert found["s"].to_list() == expected
    assert found["'=n"].to_list()[1] == "-1.0"  # a number is no formula
    assert found["request_time"].to_list()[0] == "2024-03-01T12:00:00Z"


@pytest.mark.parametrize("arguments", [{"format": "xlsx", "path": "x"}, {"path": "x"}])
def test_an_export_in_an_unknown_form_is_refused(shop_settings, arguments):
    with pytest.raises(errors.InvalidParameter, match="parquet or csv"):
        exports.export(shop_settings, {"endpoint": "shop", **arguments})


def test_an_export_over_its_bound_is_refused_and_leaves_nothing(shop_settings, tmp_path):
    shop.write(shop_settings, *(shop.payload(place) for place in range(5)))
    path = tmp_path / "out.csv"
    asked = {"endpoint": "shop", "format": "csv", "path": str(path)}
    with pytest.raises(errors.InvalidParameter, match=r"More than 4 rows match.*from= and to="):
        exports.export(shop_settings, asked, most_rows=4)
    assert not path.exists()
    assert exports.export(shop_settings, asked, most_rows=5)["rows"] == 5


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_an_export_of_no_row_has_its_columns(shop_settings, tmp_path, form):
    shop.write(shop_settings, shop.payload(0))
    path = tmp_path / f"out.{form}"
    asked = {"endpoint": "shop", "format": form, "path": str(path), "status": "500"}
    assert exports.export(shop_settings, asked)["rows"] == 0
    found = pl.read_csv(path) if form == "csv" else pl.read_parquet(path)
    assert found.columns[-2:] == ["label", "label_time"]
    assert found.is_empty()


def test_labels_have_one_type_through_all_of_an_export(shop_settings, tmp_path):
    many = [{"x": place} for place in range(exports.STRETCH_ROWS)]
    for day in range(2):
        shop.write(shop_settings, shop.payload(day * 1440, many), shop.payload(day * 1440 + 1))
    shop.label(shop_settings, 7, 2, client_request_id="client-1")
    shop.label(shop_settings, "late", 3, client_request_id="client-1441")
    path = tmp_path / "out.parquet"
    exports.export(shop_settings, {"endpoint": "shop", "format": "parquet", "path": str(path)})
    found = pl.read_parquet(path)
    assert len(found) == 2 * exports.STRETCH_ROWS + 2
    assert found["label"].drop_nulls().to_list() == ["7", "late"]
    assert found["request_time"].is_sorted()
