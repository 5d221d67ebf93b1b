//! The Factory actor hands out machines that exist already. A factory never fails a creation: whatever is wrong with
//! it, the answer is a cold boot and the reason.

mod actor;
mod messages;

pub use actor::FactoryActor;
pub use messages::{Acquire, Acquired, FactoryStatus, Status};
