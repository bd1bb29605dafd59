//! Any text as a recipe is read or refused with a remedy, and a recipe that was read says the same written out.

#![no_main]

use std::path::Path;

use asyncthink_recipe::Recipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Recipe::parse(text, Path::new("fuzz.toml"), &[]) {
        Ok(recipe) => {
            let again =
                Recipe::parse(&recipe.to_toml(), Path::new("fuzz.toml"), &[]).expect("a recipe");
            assert_eq!(*again, *recipe);
        }
        Err(errors) => {
            assert!(!errors.errors().is_empty());
            assert!(errors.to_string().contains("hint: "));
        }
    }
});
