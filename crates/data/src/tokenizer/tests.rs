use fs_err as fs;

use super::*;

#[test]
fn the_named_end_of_sequence_comes_first_and_all_of_them_survive_saving() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = ["a", "b", "<|endoftext|>", "<|im_end|>"];
    let special = |id: u32| {
        serde_json::json!({"id": id, "content": text[id as usize], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(2), special(3)],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}},
    });
    let write = |name: &str, value: serde_json::Value| {
        fs::write(from.path().join(name), value.to_string()).unwrap();
    };
    write("tokenizer.json", json);
    write(
        "tokenizer_config.json",
        serde_json::json!({"eos_token": "<|im_end|>"}),
    );
    write(
        "generation_config.json",
        serde_json::json!({"eos_token_id": [3, 2]}),
    );
    let tokenizer = Tokenizer::from_dir(from.path()).unwrap();
    assert_eq!(tokenizer.eos_id(), Some(TokenId(3)));
    assert_eq!(tokenizer.eos_ids(), [TokenId(2), TokenId(3)]);
    tokenizer.save(to.path()).unwrap();
    let again = Tokenizer::from_dir(to.path()).unwrap();
    assert_eq!(again.eos_id(), tokenizer.eos_id());
    assert_eq!(again.eos_ids(), tokenizer.eos_ids());
}

#[test]
fn every_end_of_a_turn_stops_and_a_chat_is_taught_that_of_its_template() {
    let from = tempfile::tempdir().unwrap();
    let text = ["a", "b", "<|endoftext|>", "<|im_end|>", "<|eom|>"];
    let added = |id: u32, special: bool| {
        serde_json::json!({"id": id, "content": text[id as usize], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special})
    };
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        // As in fine-tuned models that were given the template later.
        "added_tokens": [added(2, true), added(3, false), added(4, true)],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}},
    });
    let write = |name: &str, value: serde_json::Value| {
        fs::write(from.path().join(name), value.to_string()).unwrap();
    };
    write("tokenizer.json", json);
    let named = serde_json::json!({"eos_token": "<|endoftext|>"});
    write("tokenizer_config.json", named);
    write("config.json", serde_json::json!({"eos_token_id": 2}));
    write(
        "generation_config.json",
        serde_json::json!({"eos_token_id": [4]}),
    );
    let template = "{% for m in messages %}{{ m.role }} {{ m.content }} <|im_end|>\n{% endfor %}";
    fs::write(from.path().join("chat_template.jinja"), template).unwrap();
    let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
    let tokenizer = Tokenizer::from_dir(from.path()).unwrap();
    assert_eq!(tokenizer.eos_ids(), ids(&[2, 3, 4]));
    let end = |form| tokenizer.response_end_id(form);
    assert_eq!(end(PromptForm::Chat), Some(TokenId(3)));
    assert_eq!(end(PromptForm::Plain), Some(TokenId(2)));
    // It is special now: no text, and no agent writes it.
    assert_eq!(tokenizer.token_bytes(TokenId(3)), b"");
    let spelled = tokenizer.encode_continuation("b<|im_end|>b", None).unwrap();
    assert!(!spelled.contains(&TokenId(3)), "{spelled:?}");
    assert_eq!(tokenizer.encode("b<|im_end|>b").unwrap(), ids(&[1, 3, 1]));

    // A template that writes none, or that cannot be used, changes nothing.
    for template in [
        "{{ messages[0].content }}",
        "{% if %}",
        "{{ raise_exception('no') }}",
    ] {
        fs::write(from.path().join("chat_template.jinja"), template).unwrap();
        let tokenizer = Tokenizer::from_dir(from.path()).unwrap();
        assert_eq!(tokenizer.eos_ids(), ids(&[2, 4]));
        let end = tokenizer.response_end_id(PromptForm::Chat);
        assert_eq!(end, Some(TokenId(2)));
    }
}

#[test]
fn a_broken_file_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    fs::write(&path, "{").unwrap();
    let error = Tokenizer::from_dir(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
    assert!(matches!(
        Tokenizer::from_file(&directory.path().join("none")),
        Err(Error::Io(_))
    ));
}
