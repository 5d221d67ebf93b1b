//! The Hook actor owns nothing but running children: it runs the hooks of a phase, one after the other.

mod actor;
mod messages;

pub use actor::HookActor;
pub use messages::RunHooks;
