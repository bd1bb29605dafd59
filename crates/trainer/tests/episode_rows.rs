//! What of an episode is trained, shown token by token.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use asyncthink_algorithms::RewardRule;
use asyncthink_algorithms::advantage::MeanCentred;
use asyncthink_data::{
    PromptTemplates, PromptText, TaskTokenizerConfig, TokenId, Tokenizer, TrainingRow,
    task_tokenizer,
};
use asyncthink_engine::{AgentId, Error, Request, SamplingParams};
use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use asyncthink_recipe::AdvantageGroup;
use asyncthink_rollout::{
    AdvantageRule, EpisodeMetrics, OverlongRule, RewardedEpisode, assign_advantages,
    episode_records, reward_episode, rows_to_train, training_rows,
};
use asyncthink_rollout::{
    AgentBackend, AgentToken, Episode, Prompt, Query, Result, RolloutSettings, rollout,
};
use asyncthink_tasks::{Problem, mcd};

const RULE: RewardRule = RewardRule {
    lambda: 0.2,
    tau: 0.9,
    format_error: -0.5,
    gate_concurrency: false,
};

/// Decodes, for each prompt, a written text; then ends of sequence.
struct ScriptedBackend<'a> {
    tokenizer: &'a Tokenizer,
    scripts: BTreeMap<&'static str, &'static str>,
    agents: BTreeMap<AgentId, Script>,
}

struct Script {
    ids: Vec<TokenId>,
    next: usize,
    running: bool,
}

impl ScriptedBackend<'_> {
    fn agent(&mut self, agent: AgentId) -> Result<&mut Script> {
        let script = self.agents.get_mut(&agent);
        Ok(script.ok_or(Error::UnknownAgent(agent))?)
    }
}

impl AgentBackend for ScriptedBackend<'_> {
    fn start(&mut self, request: Request) -> Result<()> {
        let prompt = self.tokenizer.decode(&request.prompt);
        let ids = self
            .tokenizer
            .encode(self.scripts[prompt.as_str()])
            .unwrap();
        self.agents.insert(
            request.agent,
            Script {
                ids,
                next: 0,
                running: true,
            },
        );
        Ok(())
    }

    fn inject(&mut self, agent: AgentId, _: usize, _: &[TokenId]) -> Result<()> {
        self.agent(agent)?.running = true;
        Ok(())
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.agent(agent)?.running = false;
        Ok(())
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.agents.remove(&agent);
        Ok(())
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        let eos = self.tokenizer.eos_ids()[0];
        let running = self.agents.iter_mut().filter(|(_, script)| script.running);
        Ok(running
            .map(|(&agent, script)| {
                let token = script.ids.get(script.next).copied().unwrap_or(eos);
                script.next += 1;
                AgentToken {
                    agent,
                    token,
                    logprob: Some(-0.5 * script.next as f32),
                }
            })
            .collect())
    }

    fn num_free(&self) -> usize {
        16
    }

    fn max_sequence_tokens(&self) -> usize {
        500
    }
}

fn tokenizer() -> Tokenizer {
    let tags = "<FORK1></FORK1><JOIN1></JOIN1><RETURN></RETURN><ANSWER></ANSWER>";
    task_tokenizer(
        ["main ask", "sub", "think", tags],
        &TaskTokenizerConfig::default(),
    )
    .unwrap()
}

fn episode(tokenizer: &Tokenizer, scripts: &[(&'static str, &'static str)]) -> Episode {
    let text = PromptText {
        organizer: "main {query}".into(),
        worker: "sub {sub_query}".into(),
        query: "ask".into(),
    };
    let templates = PromptTemplates::new(text, 1).unwrap();
    let settings = RolloutSettings {
        protocol: Protocol {
            tags: TagStyle::Plain,
            capacity: Capacity::new(2).unwrap(),
            overflow: Overflow::Error,
            max_forks: None,
        },
        worker_max_tokens: 40,
        organizer_max_tokens: 40,
        organizer_total_tokens: None,
        sampling: SamplingParams::default(),
    };
    let scripts = scripts.iter().copied().collect();
    let mut backend = ScriptedBackend {
        tokenizer,
        scripts,
        agents: BTreeMap::new(),
    };
    let prompt = Prompt::new(tokenizer, &templates, 0, "ask".into()).unwrap();
    let query = Query {
        prompt: Arc::new(prompt),
        sample_index: 0,
        seed: 0,
    };
    rollout(
        &mut backend,
        tokenizer,
        &templates,
        &settings,
        &[query],
        &mut |_| true,
    )
    .unwrap()
    .remove(0)
}

fn problem() -> Problem {
    let rules = mcd::Rules {
        min_numbers: 2,
        max_numbers: 2,
    };
    mcd::Problem::new(8, vec![3, 5, 2, 4], 2, rules)
        .unwrap()
        .into()
}

/// One line per token: `1` if it is trained, the sampler's log-probability, and the token.
fn lines(tokenizer: &Tokenizer, row: &TrainingRow) -> Vec<String> {
    (0..row.len())
        .map(|index| {
            let trained = u8::from(row.loss_mask()[index]);
            let logprob = row.logprobs().unwrap()[index];
            format!(
                "{trained} {logprob:>4} {}",
                tokenizer.decode(&row.ids()[index..=index])
            )
        })
        .collect()
}

#[test]
fn decoded_tokens_are_trained_and_given_ones_are_not() {
    let tokenizer = tokenizer();
    let episode = episode(
        &tokenizer,
        &[
            (
                "main ask",
                "think<FORK1>4*2</FORK1>3<JOIN1><ANSWER>3+5,4*2</ANSWER>",
            ),
            ("sub 4*2", "8<RETURN>4*2</RETURN>"),
        ],
    );
    let mut graded = [reward_episode(episode, &problem(), &tokenizer, &RULE, true)];
    (graded[0].advantage, graded[0].worker_advantage) = (0.75, 0.75);
    let rows = training_rows(&graded).unwrap();
    assert_eq!(rows.len(), 2, "the organizer and its worker");
    let organizer = [
        "0    0 main",
        "0    0  ask",
        "1 -0.5 think",
        "1   -1 <FORK1>",
        "1 -1.5 4",
        "1   -2 *",
        "1 -2.5 2",
        "1   -3 </FORK1>",
        "1 -3.5 3",
        // The opening tag is the organizer's own decision; what follows it was put there.
        "1   -4 <JOIN1>",
        "0    0 4",
        "0    0 *",
        "0    0 2",
        "0    0 </JOIN1>",
        "1 -4.5 <ANSWER>",
        "1   -5 3",
        "1 -5.5 +",
        "1   -6 5",
        "1 -6.5 ,",
        "1   -7 4",
        "1 -7.5 *",
        "1   -8 2",
        "1 -8.5 </ANSWER>",
        // The end of sequence.
        "1   -9 ",
    ];
    assert_eq!(lines(&tokenizer, &rows[0]), organizer);
    let worker = [
        "0    0 sub",
        "0    0  ",
        "0    0 4",
        "0    0 *",
        "0    0 2",
        "1 -0.5 8",
        "1   -1 <RETURN>",
        "1 -1.5 4",
        "1   -2 *",
        "1 -2.5 2",
        "1   -3 </RETURN>",
        "1 -3.5 ",
    ];
    assert_eq!(lines(&tokenizer, &rows[1]), worker);
    for row in &rows {
        assert_eq!((row.advantage(), row.episode().0), (0.75, 0));
    }
}

#[test]
fn one_advantage_covers_all_rows_of_an_episode_and_format_errors_stay_in_their_group() {
    let tokenizer = tokenizer();
    let right = [
        (
            "main ask",
            "<FORK1>4*2</FORK1>3<JOIN1><ANSWER>3+5,4*2</ANSWER>",
        ),
        ("sub 4*2", "8<RETURN>4*2</RETURN>"),
    ];
    let half = [("main ask", "<ANSWER>3+5</ANSWER>")];
    let broken = [
        ("main ask", "<FORK1>4*2</FORK1><FORK1>4*2</FORK1>"),
        ("sub 4*2", "8<RETURN>4*2</RETURN>"),
    ];
    let mut graded: Vec<_> = [&right[..], &half, &broken]
        .iter()
        .map(|scripts| {
            reward_episode(
                episode(&tokenizer, scripts),
                &problem(),
                &tokenizer,
                &RULE,
                true,
            )
        })
        .collect();
    let rule = AdvantageRule::shared(&MeanCentred);
    assert_eq!(assign_advantages(&mut graded, 3, rule), [false]);
    let rewards: Vec<f64> = graded.iter().map(|episode| episode.reward.total).collect();
    assert!(rewards[0] > rewards[1] && rewards[1] > rewards[2]);
    assert!((rewards[2] + 0.5).abs() < 1e-12);
    let rows = training_rows(&graded).unwrap();
    let episodes: Vec<u32> = rows.iter().map(|row| row.episode().0).collect();
    assert_eq!(episodes, [0, 0, 1, 2, 2]);
    let mean = rewards.iter().sum::<f64>() / 3.0;
    for row in &rows {
        let expected = rewards[row.episode().0 as usize] - mean;
        assert!((f64::from(row.advantage()) - expected).abs() < 1e-6);
    }

    let figures = EpisodeMetrics::of(&graded).unwrap();
    assert!((figures.valid - 2.0 / 3.0).abs() < 1e-12);
    assert!((figures.all_correct - 1.0 / 3.0).abs() < 1e-12);
    assert!((figures.reward_accuracy - 0.5).abs() < 1e-12);
    // Of the two valid episodes; the broken one forked twice.
    assert_eq!(figures.forks_per_query, Some(0.5));
    assert_eq!(figures.joins_per_query, Some(0.5));
    assert_eq!(figures.empty_returns_per_query, Some(0.0));
    assert_eq!(figures.format_errors["duplicate_sub_query"], 1);
    assert_eq!(figures.format_errors.values().sum::<usize>(), 1);

    let records = episode_records(7, &graded, &tokenizer);
    assert_eq!(records.len(), 5);
    for (record, row) in records.iter().zip(&rows) {
        assert_eq!(
            (record.ids.as_slice(), record.decoded.as_slice()),
            (row.ids(), row.loss_mask())
        );
    }
    assert_eq!(records[0].worker_end, None);
    assert_eq!(records[1].worker_end.as_deref(), Some("returned"));
    assert_eq!(records[4].worker_end.as_deref(), Some("cancelled"));
    assert_eq!(records[4].error.as_deref(), Some("duplicate_sub_query"));
    assert_eq!(
        records[0].text,
        "<FORK1>4*2</FORK1>3<JOIN1>4*2</JOIN1><ANSWER>3+5,4*2</ANSWER>"
    );
}

#[test]
fn workers_that_nobody_joins_count_in_the_figures_and_by_option_in_the_reward() {
    let tokenizer = tokenizer();
    let scripts = [
        (
            "main ask",
            "<FORK1>4*2</FORK1>3 think think<ANSWER>3+5</ANSWER>",
        ),
        ("sub 4*2", "8 8 8 8 8 8 8 8 8 8 8 8 8"),
    ];
    let grade = |count_unjoined| {
        reward_episode(
            episode(&tokenizer, &scripts),
            &problem(),
            &tokenizer,
            &RULE,
            count_unjoined,
        )
    };
    let (counted, left_out) = (grade(true), grade(false));
    assert_eq!(counted.graded.concurrency, left_out.graded.concurrency);
    assert!(counted.reward.total > left_out.reward.total);
    let figures = EpisodeMetrics::of(&[left_out]).unwrap();
    assert!(figures.eta_ratio > Some(0.5));
    assert_eq!(figures.eta_ratio_rewarded, Some(0.5));
    assert_eq!(figures.cancelled_workers_per_query, Some(1.0));
    let empty = [
        ("main ask", "<FORK1>4*2</FORK1><JOIN1><ANSWER>3+5</ANSWER>"),
        ("sub 4*2", "8"),
    ];
    let graded = reward_episode(
        episode(&tokenizer, &empty),
        &problem(),
        &tokenizer,
        &RULE,
        true,
    );
    let figures = EpisodeMetrics::of(&[graded]).unwrap();
    assert_eq!(figures.empty_returns_per_query, Some(1.0));
}

/// Two episodes with workers and one without, of one problem.
fn group(tokenizer: &Tokenizer) -> Vec<RewardedEpisode> {
    let right = [
        (
            "main ask",
            "<FORK1>4*2</FORK1>3<JOIN1><ANSWER>3+5,4*2</ANSWER>",
        ),
        ("sub 4*2", "8<RETURN>4*2</RETURN>"),
    ];
    let half = [
        ("main ask", "<FORK1>4*2</FORK1>3<JOIN1><ANSWER>3+5</ANSWER>"),
        ("sub 4*2", "8<RETURN>4*2</RETURN>"),
    ];
    let alone = [("main ask", "<ANSWER>3+5</ANSWER>")];
    [&right[..], &half, &alone]
        .iter()
        .map(|scripts| {
            reward_episode(
                episode(tokenizer, scripts),
                &problem(),
                tokenizer,
                &RULE,
                true,
            )
        })
        .collect()
}

#[test]
fn workers_may_be_compared_with_workers_and_weigh_less() {
    let tokenizer = tokenizer();
    let mut episodes = group(&tokenizer);
    let rewards: Vec<f64> = episodes.iter().map(|one| one.reward.total).collect();
    let rule = AdvantageRule {
        group: AdvantageGroup::Role,
        worker_weight: 0.5,
        ..AdvantageRule::shared(&MeanCentred)
    };
    assert_eq!(assign_advantages(&mut episodes, 3, rule), [false]);
    let mean = rewards.iter().sum::<f64>() / 3.0;
    let half_gap = (rewards[0] - rewards[1]) / 2.0;
    let rows = training_rows(&episodes).unwrap();
    let got: Vec<(usize, f64)> = rows
        .iter()
        .map(|row| (row.label().index(), f64::from(row.advantage())))
        .collect();
    let expected = [
        (0, rewards[0] - mean),
        (1, 0.5 * half_gap),
        (0, rewards[1] - mean),
        (1, -0.5 * half_gap),
        (0, rewards[2] - mean),
    ];
    for ((label, advantage), (expected_label, expected)) in got.iter().zip(expected) {
        assert_eq!(*label, expected_label);
        assert!((advantage - expected).abs() < 1e-6, "{got:?}");
    }
    let records = episode_records(1, &episodes, &tokenizer);
    assert!((records[1].advantage - 0.5 * half_gap).abs() < 1e-12);
}

#[test]
fn a_penalty_moves_the_advantage_and_not_the_reward() {
    let tokenizer = tokenizer();
    let mut episodes = group(&tokenizer);
    let rewards: Vec<f64> = episodes.iter().map(|one| one.reward.total).collect();
    episodes[0].penalty = 0.3;
    assign_advantages(&mut episodes, 3, AdvantageRule::shared(&MeanCentred));
    let mean = (rewards.iter().sum::<f64>() - 0.3) / 3.0;
    assert!((episodes[0].advantage - (rewards[0] - 0.3 - mean)).abs() < 1e-12);
    let figures = EpisodeMetrics::of(&episodes).unwrap();
    assert!((figures.reward - rewards.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    assert!((figures.reward_penalty - 0.1).abs() < 1e-12);

    // A group of equal rewards has no signal, however far its episodes are from the reference.
    let mut equal = vec![episodes[2].clone(), episodes[2].clone()];
    equal[0].kl_penalty = 0.2;
    let rule = AdvantageRule::shared(&MeanCentred);
    assert_eq!(assign_advantages(&mut equal, 2, rule), [true]);
    assert!((equal[0].advantage + 0.1).abs() < 1e-12);
}

#[test]
fn agents_cut_at_a_token_limit_are_marked_masked_and_punished() {
    let tokenizer = tokenizer();
    let long =
        "8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8";
    let worker_cut = [
        ("main ask", "<FORK1>4*2</FORK1>3<JOIN1><ANSWER>3+5</ANSWER>"),
        ("sub 4*2", long),
    ];
    let organizer_cut = [
        (
            "main ask",
            "<FORK1>4*2</FORK1> think think think think think think think think think think think think think think think think \
             think think think think think think think think think think think think think think think think think think think",
        ),
        ("sub 4*2", "8<RETURN>4*2</RETURN>"),
    ];
    // Complete at the last token of the budget: not cut.
    let whole = [("main ask", "<ANSWER>3+5</ANSWER>")];
    let episodes: Vec<RewardedEpisode> = [&worker_cut[..], &organizer_cut, &whole]
        .iter()
        .map(|scripts| {
            reward_episode(
                episode(&tokenizer, scripts),
                &problem(),
                &tokenizer,
                &RULE,
                true,
            )
        })
        .collect();
    let truncated: Vec<usize> = episodes
        .iter()
        .map(|one| one.graded.episode.num_truncated_agents())
        .collect();
    assert_eq!(truncated, [1, 1, 0]);
    let figures = EpisodeMetrics::of(&episodes).unwrap();
    assert!((figures.truncated - 2.0 / 5.0).abs() < 1e-12);
    let members: Vec<&RewardedEpisode> = episodes.iter().collect();
    let (rows, masked) = rows_to_train(&members, true).unwrap();
    let of = |rows: &[TrainingRow]| -> Vec<(u32, usize)> {
        let rows = rows.iter();
        rows.map(|row| (row.episode().0, row.label().index()))
            .collect()
    };
    // Of the first episode its worker, of the second all: the cut decided its reward.
    assert_eq!(of(&rows), [(0, 0), (2, 0)]);
    assert_eq!(of(&masked), [(0, 1), (1, 0), (1, 1)]);
    let (rows, masked) = rows_to_train(&members, false).unwrap();
    assert_eq!((rows.len(), masked.len()), (5, 0));

    let rule = OverlongRule {
        buffer_tokens: 10,
        penalty: 0.5,
        worker_max_tokens: 40,
        organizer_max_tokens: 40,
        organizer_total_tokens: None,
    };
    let penalties: Vec<f64> = members
        .iter()
        .map(|one| rule.penalty_of(&one.graded.episode))
        .collect();
    assert_eq!(penalties, [0.5, 0.5, 0.0]);
}
