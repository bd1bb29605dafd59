//! Names of implementations that a recipe may use, from the registries of the crates that have them.

use asyncthink_coldstart::teacher;
use asyncthink_eval::Methods;
use asyncthink_recipe::Catalogue;
use asyncthink_tasks::Registry;

/// Everything that this program implements.
pub(crate) fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::closed(Registry::builtin());
    for (name, loss) in asyncthink_algorithms::loss::registry().iter() {
        catalogue = catalogue.with_loss(name, (loss.schema)());
    }
    for method in Methods::builtin().names() {
        catalogue = catalogue.with_eval_method(method);
    }
    for name in asyncthink_metrics::sinks().names() {
        catalogue = catalogue.with_metrics_sink(name);
    }
    for teacher in teacher::Registry::builtin().iter() {
        catalogue = catalogue.with_teacher(teacher.name(), teacher.options_schema());
    }
    catalogue
}
