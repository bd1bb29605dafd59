use super::*;

pub(super) fn state(step: u64) -> TrainerState {
    TrainerState {
        stage: "sft".into(),
        step,
        num_updates: step,
        metrics_bytes: 0,
        seed: 1,
        dataset: "d".into(),
        initial_model: None,
        recipe: std::collections::BTreeMap::new(),
        figures: std::collections::BTreeMap::new(),
        chosen: std::collections::BTreeMap::new(),
        best: None,
        stopped_early: false,
        run: "r".into(),
    }
}

pub(super) fn write(dir: &Path) -> Result<()> {
    fs::write(dir.join("model.safetensors"), b"weights")?;
    fs::write(dir.join("trainer/optimizer.safetensors"), b"moments")?;
    Ok(())
}

pub(super) fn store_with(dir: &Path, keep: usize, steps: &[u64]) -> CheckpointStore {
    let store = CheckpointStore::open(dir, Retention::newest(keep)).unwrap();
    for step in steps {
        store.save(&state(*step), &mut write).unwrap();
    }
    store
}

#[test]
fn an_empty_folder_has_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let found = store_with(dir.path(), 2, &[]).newest().unwrap();
    assert!(found.checkpoint.is_none() && found.passed_over.is_empty());
}

#[test]
fn latest_points_at_the_newest_and_old_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), 2, &[1, 2, 10]);
    assert_eq!(store.steps().unwrap(), [2, 10]);
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 10);
    assert!(dir.path().join("latest/model.safetensors").is_file());
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_named() {
    for file in ["model.safetensors", "trainer/state.json", MANIFEST_FILE] {
        for damage in ["flip", "cut", "remove"] {
            let dir = tempfile::tempdir().unwrap();
            let store = store_with(dir.path(), 2, &[1, 2]);
            let path = store.dir_of(2).join(file);
            let mut bytes = fs::read(&path).unwrap();
            match damage {
                "flip" => bytes[0] ^= 1,
                _ => bytes.truncate(bytes.len() / 2),
            }
            fs::write(&path, bytes).unwrap();
            if damage == "remove" {
                fs::remove_file(&path).unwrap();
            }
            let found = store.newest().unwrap();
            assert_eq!(found.checkpoint.unwrap().state.step, 1, "{file} {damage}");
            assert!(
                found.passed_over[0].to_string().contains(file),
                "{}",
                found.passed_over[0]
            );
        }
    }
}

#[test]
fn nothing_readable_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), 2, &[1]);
    fs::remove_file(store.dir_of(1).join(STATE_FILE)).unwrap();
    assert!(matches!(
        store.newest(),
        Err(Error::NoReadableCheckpoint { .. })
    ));
}

#[test]
fn a_failed_write_leaves_the_old_ones_and_is_swept_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), 1, &[1]);
    let failed = store.save(&state(2), &mut |partial| {
        write(partial)?;
        Err(Error::Io(std::io::Error::other("disk full")))
    });
    assert!(failed.is_err());
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 1);
    let store = CheckpointStore::open(dir.path(), Retention::newest(1)).unwrap();
    assert!(
        !store
            .entries()
            .unwrap()
            .iter()
            .any(|name| name.starts_with(HIDDEN))
    );
}

#[test]
fn a_later_checkpoint_that_latest_does_not_name_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), 3, &[1, 2, 3]);
    links::point(&store.folder, LATEST, 2).unwrap();
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 2);
    store.rewind_to(1).unwrap();
    assert_eq!(store.steps().unwrap(), [1]);
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 1);
}

#[test]
fn an_adopted_checkpoint_is_whole_and_starts_its_own_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let there = store_with(&dir.path().join("there"), 2, &[]);
    let far = TrainerState {
        metrics_bytes: 77,
        ..state(5)
    };
    there.save(&far, &mut write).unwrap();
    let given = there.newest().unwrap().checkpoint.unwrap();
    let here = CheckpointStore::open(&dir.path().join("here"), Retention::newest(2)).unwrap();
    let adopted = here.adopt(&given).unwrap();
    assert_eq!(adopted.dir, here.dir_of(5));
    let found = here.newest().unwrap().checkpoint.unwrap();
    assert_eq!((found.state.step, found.state.metrics_bytes), (5, 0));
    assert!(found.dir.join("trainer/optimizer.safetensors").is_file());
}

/// A folder that keeps the newest and the two with the smallest loss.
pub(super) fn store_of_best(dir: &Path) -> CheckpointStore {
    let retention = Retention {
        num_newest: 1,
        num_best: 2,
        metric: "loss",
        less_is_better: true,
    };
    CheckpointStore::open(dir, retention).unwrap()
}

pub(super) fn save_with_loss(store: &CheckpointStore, step: u64, loss: Option<f64>) {
    let mut state = state(step);
    state
        .figures
        .extend(loss.map(|loss| ("loss".to_owned(), loss)));
    store.save(&state, &mut write).unwrap();
}

#[test]
fn the_best_stay_besides_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of_best(dir.path());
    let best = |store: &CheckpointStore| links::named_step(&store.folder, BEST);
    save_with_loss(&store, 1, None);
    assert_eq!(best(&store), None);
    for (step, loss, kept, expected) in [
        (2, 3.0, &[2][..], 2),
        (3, 5.0, &[2, 3], 2),
        (4, 4.0, &[2, 4], 2),
        (5, 9.0, &[2, 4, 5], 2),
        // Of equals the later one.
        (6, 3.0, &[2, 6], 6),
        (7, 8.0, &[2, 6, 7], 6),
    ] {
        save_with_loss(&store, step, Some(loss));
        assert_eq!(store.steps().unwrap(), kept);
        assert_eq!(best(&store), Some(expected));
        assert_eq!(store.latest_step(), Some(step));
    }
    assert!(dir.path().join("best/model.safetensors").is_file());

    // The figures are those of the checkpoints: a later process knows them.
    let store = store_of_best(dir.path());
    save_with_loss(&store, 8, Some(4.0));
    assert_eq!(store.steps().unwrap(), [2, 6, 8]);

    // A damaged one is not the best.
    let state_file = store.dir_of(6).join(STATE_FILE);
    let text = fs::read_to_string(&state_file).unwrap();
    fs::write(&state_file, text.replace("3.0", "1.0")).unwrap();
    save_with_loss(&store, 9, Some(7.0));
    assert_eq!(
        (best(&store), store.steps().unwrap()),
        (Some(2), vec![2, 8, 9])
    );
    fs::write(store.dir_of(2).join("model.safetensors"), b"cut").unwrap();
    save_with_loss(&store, 10, Some(7.5));
    assert_eq!(
        (best(&store), store.steps().unwrap()),
        (Some(8), vec![8, 9, 10])
    );

    // A run that goes back knows a best one of what it goes on from.
    store.rewind_to(9).unwrap();
    assert_eq!(
        (best(&store), store.steps().unwrap()),
        (Some(8), vec![8, 9])
    );

    // Where none is kept for being good any more, nothing is called the best.
    let store = CheckpointStore::open(dir.path(), Retention::newest(1)).unwrap();
    save_with_loss(&store, 11, Some(1.0));
    assert_eq!((best(&store), store.steps().unwrap()), (None, vec![11]));
    assert!(!dir.path().join(BEST).is_symlink());
}
