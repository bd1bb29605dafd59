//! Every recipe that comes with the project loads, and its resolved form
//! loads again to the same values.

use std::path::{Path, PathBuf};

use asyncthink_recipe::Recipe;

fn recipes(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .expect("the recipes folder is there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            recipes(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "toml") {
            found.push(path);
        }
    }
}

#[test]
fn every_recipe_loads_and_resolves() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut found = Vec::new();
    recipes(&root, &mut found);
    assert!(found.len() >= 2, "{found:?}");
    for path in found {
        let recipe = Recipe::load(&path, &[]).unwrap_or_else(|errors| panic!("{errors}"));
        let resolved = recipe.to_toml();
        let again = Recipe::parse(&resolved, &path, &[])
            .unwrap_or_else(|errors| panic!("{resolved}\n{errors}"));
        assert_eq!(*recipe, *again, "{}", path.display());
        assert_eq!(resolved, again.to_toml());
    }
}
