"""Where a base model comes from: the conversion of a GGUF file."""

import gguf
import pytest

from dorakit.model.gguf_reading import header_read_quickly


def test_a_header_is_read_once(tmp_path):
    """Planted bugs caught: nothing remembered; transformers left with our readers after the block, or after a failure."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    own = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(KeyError), header_read_quickly():
        reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
        assert "general.architecture" in reader.fields
        assert gguf.GGUFReader(str(tmp_path / "m.gguf")) is reader
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is names
        raise KeyError
    assert own == (gguf.GGUFReader, gguf.get_tensor_name_map)
