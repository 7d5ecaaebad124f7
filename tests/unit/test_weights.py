from pipeline.weights import pin_model


def save(folder, pooling):
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / ".git").mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text(pooling)
    return folder


def test_what_stands_in_a_model_s_inner_folders_is_part_of_its_identity(tmp_path):
    mean = pin_model(str(save(tmp_path / "a", "mean")), None)
    assert pin_model(str(save(tmp_path / "b", "cls")), None).identity != mean.identity
    same = pin_model(str(save(tmp_path / "c", "mean")), None)
    assert same.identity == mean.identity
    (tmp_path / "c" / ".git" / "HEAD").write_text("main")
    assert pin_model(same.location, None).identity == mean.identity
