//! Prompts that a chat template makes.

use asyncthink_data::{ChatSettings, Tokenizer};
use asyncthink_protocol::Overflow;
use asyncthink_rollout::{Episode, Error, WorkerEnd, rollout};

use crate::backend::{ScriptedBackend, query_of, settings, templates, tokenizer};

/// Refuses every message that speaks of two.
const TEMPLATE: &str = "{% for message in messages %}{% if 'two' in message.content %}{{ raise_exception('not two') }}{% endif %}\
                        {{ message.content }} {% endfor %}c";

fn run(text: &str, scripts: &[(&str, &str)]) -> Result<Episode, Error> {
    let folder = tempfile::tempdir().unwrap();
    tokenizer().save(folder.path()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
    let mut backend = ScriptedBackend::new(&tokenizer, 3, scripts);
    let templates = templates().with_chat(Some(ChatSettings::default()));
    let query = query_of(&tokenizer, &templates, 0, text)?;
    let mut episodes = rollout(
        &mut backend,
        &tokenizer,
        &templates,
        &settings(3, Overflow::Error),
        &[query],
        &mut |_| true,
    )?;
    assert!(backend.agents.is_empty(), "every agent is freed");
    Ok(episodes.remove(0))
}

#[test]
fn a_sub_query_that_the_template_refuses_ends_its_worker_alone() {
    let organizer = "a<FORK1> one</FORK1><FORK2> two</FORK2><JOIN2><JOIN1> c<ANSWER>7</ANSWER>";
    let scripts = [
        ("main 0 c", organizer),
        ("sub  one c", " a<RETURN>12</RETURN>"),
    ];
    let episode = run("0", &scripts).unwrap();
    assert_eq!(episode.answer(), Some("7"));
    let [one, two] = &episode.workers[..] else {
        panic!("two workers");
    };
    assert_eq!(one.end, WorkerEnd::Returned("12".to_owned()));
    assert_eq!(two.end, WorkerEnd::Empty);
    assert_eq!(two.record.ids(), []);
}

#[test]
fn a_query_that_the_template_refuses_is_an_error() {
    let error = run("two", &[]).unwrap_err();
    assert!(error.to_string().contains("not two"), "{error}");
}
