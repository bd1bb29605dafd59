//! Seams of prompt, decoded and injected text, with tokenizers that put a space before every text.

use std::path::Path;

use asyncthink_data::{PromptForm, PromptTemplates, PromptText, Tokenizer};
use asyncthink_protocol::Overflow;
use asyncthink_rollout::{WorkerEnd, rollout};

use crate::backend::{ScriptedBackend, query_of, settings};

#[test]
fn a_context_has_the_ids_of_its_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/tokenizers");
    for name in [
        "prepend",
        "metaspace_first",
        "llama",
        "byte_level_prefix",
        "byte_level",
    ] {
        let tokenizer = Tokenizer::from_dir(&folder.join(name)).unwrap();
        let text = PromptText {
            organizer: "{query}\n".into(),
            worker: "Subtask: {sub_query}\n".into(),
            query: "ask".into(),
        };
        let templates = PromptTemplates::new(text, 2).unwrap();
        let decode = |text: &str| {
            let ids = tokenizer.encode_prompt(text, PromptForm::Plain).unwrap();
            tokenizer.decode(&ids)
        };
        let organizer = "<FORK1>3 5</FORK1><JOIN1> the<ANSWER>15</ANSWER>";
        let prompts = [decode("3 5 7 = 15\n"), decode("Subtask: 3 5\n")];
        let scripts = [
            (prompts[0].as_str(), organizer),
            (prompts[1].as_str(), "3 * 5<RETURN>15</RETURN>"),
        ];
        let mut backend = ScriptedBackend::new(&tokenizer, 3, &scripts);
        let query = query_of(&tokenizer, &templates, 0, "3 5 7 = 15").unwrap();
        let settings = settings(3, Overflow::Error);
        let episodes = rollout(
            &mut backend,
            &tokenizer,
            &templates,
            &settings,
            &[query],
            &mut |_| true,
        );
        let episode = episodes.unwrap().remove(0);
        assert_eq!(episode.answer(), Some("15"), "{name}");
        let returned = WorkerEnd::Returned("15".to_owned());
        assert_eq!(episode.workers[0].end, returned, "{name}");
        for (record, text) in [
            (
                &episode.organizer,
                "3 5 7 = 15\n<FORK1>3 5</FORK1><JOIN1>15</JOIN1> the<ANSWER>15</ANSWER>",
            ),
            (
                &episode.workers[0].record,
                "Subtask: 3 5\n3 * 5<RETURN>15</RETURN>",
            ),
        ] {
            let mut whole = tokenizer.encode_prompt(text, PromptForm::Plain).unwrap();
            whole.push(tokenizer.eos_ids()[0]);
            assert_eq!(record.ids(), whole, "{name}");
        }
        let trace = episode.raw_trace(&tokenizer, settings.protocol);
        assert_eq!(
            trace.organizer,
            "<FORK1>3 5</FORK1><JOIN1>15</JOIN1> the<ANSWER>15</ANSWER>"
        );
        assert_eq!(trace.workers[0].text, "3 * 5<RETURN>15</RETURN>", "{name}");
    }
}
