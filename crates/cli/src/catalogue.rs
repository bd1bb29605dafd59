//! Names of implementations that a recipe may use, from the registries of the crates that have them.

use asyncthink_coldstart::teacher;
use asyncthink_recipe::Catalogue;
use asyncthink_tasks::Registry;

/// Everything that this program implements.
pub(crate) fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::closed(Registry::builtin())
        .with_loss(
            "clip",
            Catalogue::no_options(
                "Clipped probability ratio. Its options are the keys of `[grpo]`.",
            ),
        )
        .with_eval_method("asyncthink");
    for teacher in teacher::Registry::builtin().iter() {
        catalogue = catalogue.with_teacher(teacher.name(), teacher.options_schema());
    }
    catalogue
}
