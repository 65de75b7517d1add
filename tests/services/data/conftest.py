from tests.unit.data.conftest import model_folder, write_rows

__all__ = ["model_folder", "write_rows"]
