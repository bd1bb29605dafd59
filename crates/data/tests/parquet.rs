//! Rows survive the disk, and damaged files are errors.

use asyncthink_data::parquet::{
    EpisodeRecord, Role, SftPair, Span, read_episodes, read_problems, read_sft_pairs,
    write_episodes, write_problems, write_sft_pairs,
};
use asyncthink_data::{Error, PromptForm, TaskTokenizerConfig, TokenId, task_tokenizer};
use asyncthink_tasks::{Problem, mcd};
use proptest::prelude::*;

fn pair(index: u64, response: &str) -> SftPair {
    let is_worker = index % 2 == 1;
    SftPair {
        trace_id: index / 2,
        role: if is_worker {
            Role::Worker
        } else {
            Role::Organizer
        },
        worker_index: is_worker.then_some(0),
        problem_index: index,
        prompt: format!("prompt {index} \u{1f600}"),
        response: response.to_owned(),
        injected: vec![Span { start: 0, end: 1 }],
        teacher: "solver".to_owned(),
        seed: u64::MAX - index,
        topology: "F1 J1".to_owned(),
    }
}

fn episode(index: u32) -> EpisodeRecord {
    let is_worker = index % 2 == 1;
    EpisodeRecord {
        step: 7,
        prompt_index: u64::from(index / 4),
        sample_index: index / 2,
        role: if is_worker {
            Role::Worker
        } else {
            Role::Organizer
        },
        worker_index: is_worker.then_some(0),
        sub_query_id: is_worker.then_some(1),
        worker_end: is_worker.then(|| "empty".to_owned()),
        query: "3 5 = 15".to_owned(),
        ids: (0..index + 2).map(TokenId).collect(),
        prompt_len: 1,
        decoded: (0..index + 2).map(|id| id > 0).collect(),
        logprobs: (0..index + 2).map(|id| -0.1 * id as f32).collect(),
        text: "3*5=15 ok 3*5\n".to_owned(),
        answer: (!is_worker).then(|| "3*5".to_owned()),
        error: is_worker.then(|| "no_answer".to_owned()),
        reward: 0.1 + f64::from(index),
        reward_accuracy: 0.5,
        reward_concurrency: 1.0 / 3.0,
        advantage: -0.25,
        num_correct: 1,
        num_required: 2,
        latency_tokens: Some(12),
        eta: None,
        eta_ratio: Some(0.75),
        num_forks: 1,
        num_joins: 1,
    }
}

#[test]
fn problems_come_back_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("problems.parquet");
    let rules = mcd::Rules {
        min_numbers: 2,
        max_numbers: 2,
    };
    let problems: Vec<Problem> = (1..50)
        .map(|target| {
            Problem::from(mcd::Problem::new(target, vec![1, 2, target], 2, rules).unwrap())
        })
        .collect();
    write_problems(&path, &problems).unwrap();
    assert_eq!(read_problems(&path, &mcd::McdTask).unwrap(), problems);
}

#[test]
fn episodes_come_back_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("step_7.parquet");
    let rows: Vec<_> = (0..9).map(episode).collect();
    write_episodes(&path, &rows).unwrap();
    assert_eq!(read_episodes(&path).unwrap(), rows);
    write_episodes(&path, &[]).unwrap();
    assert_eq!(read_episodes(&path).unwrap(), []);
}

#[test]
fn rows_of_another_kind_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.parquet");
    write_sft_pairs(&path, &[pair(0, "x")]).unwrap();
    let error = read_episodes(&path).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ParquetKind {
                expected: "episodes",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("rows.parquet"));
    let mut wrong = pair(0, "x");
    wrong.injected = vec![Span { start: 0, end: 2 }];
    write_sft_pairs(&path, &[pair(0, "x"), wrong]).unwrap();
    assert!(matches!(
        read_sft_pairs(&path),
        Err(Error::ParquetRow { row: 1, .. })
    ));
    let mut wrong = episode(0);
    wrong.logprobs.pop();
    write_episodes(&path, &[wrong]).unwrap();
    assert!(matches!(
        read_episodes(&path),
        Err(Error::ParquetRow { row: 0, .. })
    ));
}

#[test]
fn files_that_are_no_parquet_are_errors_with_their_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pairs.parquet");
    assert!(matches!(read_sft_pairs(&path), Err(Error::Io(_))));
    for content in [
        &b""[..],
        b"PAR1",
        b"PAR1PAR1",
        b"not parquet at all",
        &[0xff; 64],
    ] {
        std::fs::write(&path, content).unwrap();
        let error = read_sft_pairs(&path).unwrap_err();
        assert!(matches!(error, Error::CorruptParquet { .. }), "{error}");
        assert!(error.to_string().contains("pairs.parquet"));
    }
}

/// What the supervised row trains: every token that an agent decodes, no token that it is given.
#[test]
fn injected_text_is_context() {
    let mut pair = pair(0, "5<JOIN1>3*5</JOIN1><ANSWER>3*5</ANSWER>");
    pair.prompt = "3 5".to_owned();
    let start = pair.response.find("3*5").unwrap();
    let end = pair.response.find("<ANSWER>").unwrap();
    pair.injected = vec![Span {
        start: u32::try_from(start).unwrap(),
        end: u32::try_from(end).unwrap(),
    }];
    let corpus = [pair.prompt.as_str(), pair.response.as_str()];
    let tokenizer = task_tokenizer(corpus, &TaskTokenizerConfig::default()).unwrap();
    let row = pair.tokenize(&tokenizer, PromptForm::Plain).unwrap();
    let trained = |wanted: bool| -> String {
        let ids = row.ids().iter().zip(row.loss_mask());
        ids.filter(|&(_, &mask)| mask == wanted)
            .map(|(&id, _)| tokenizer.decode(&[id]))
            .collect::<Vec<_>>()
            .join("|")
    };
    assert_eq!(trained(true), "5|<JOIN1>|<ANSWER>|3|*|5|</ANSWER>|");
    assert_eq!(trained(false), "3| |5|3|*|5|</JOIN1>");
    assert_eq!(row.ids().last(), tokenizer.eos_ids().first());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn pairs_come_back_as_they_were(responses in prop::collection::vec("[a-z0-9\n]{1,40}", 0..20)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pairs.parquet");
        let pairs: Vec<_> = (0..).zip(&responses).map(|(index, response)| pair(index, response)).collect();
        write_sft_pairs(&path, &pairs).unwrap();
        prop_assert_eq!(read_sft_pairs(&path).unwrap(), pairs);
    }

    /// No damage makes the reader panic; what it does not notice must still be rows of the right form.
    #[test]
    fn damage_is_never_a_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..8), cut in prop::option::of(any::<prop::sample::Index>())) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pairs.parquet");
        let pairs: Vec<_> = (0..40).map(|index| pair(index, "3*5=15 ok 3*5")).collect();
        write_sft_pairs(&path, &pairs).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (index, flip) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = read_sft_pairs(&path) {
            prop_assert!(error.to_string().contains("pairs.parquet"), "{error}");
        }
    }
}
