//! The actix shell and the logic of the Factory actor.

use super::messages::{Acquire, Acquired, FactoryStatus, Status};
use crate::actors::runtime::{Envelope, Pending, now};
use actix::{Actor, Context, Handler};

/// Hands out machines that exist already.
#[derive(Debug, Default)]
pub struct FactoryActor {
    status: FactoryStatus,
}

impl FactoryActor {
    fn acquire(&mut self, request: &Acquire) -> Acquired {
        let reason = match (request.template, request.cache) {
            (false, 0) => "neither a template nor a cache is configured ([factory] enable_template, vm_cache_number)",
            (_, 1..) => "this build serves no cache of machines ([factory] vm_cache_number)",
            (true, 0) => "this build makes no template ([factory] enable_template)",
        };
        if request.template || request.cache > 0 {
            tracing::warn!(reason, "the factory has no machine; booting one");
        }
        self.status.cold_boots += 1;
        self.status.last_reason = Some(reason.to_owned());
        Acquired::ColdBoot { reason: reason.to_owned() }
    }
}

impl Actor for FactoryActor {
    type Context = Context<Self>;
}

impl Handler<Envelope<Acquire>> for FactoryActor {
    type Result = Pending<Self, Acquire>;

    fn handle(&mut self, message: Envelope<Acquire>, _: &mut Context<Self>) -> Self::Result {
        let _entered = message.span.entered();
        now::<_, Acquire>(Ok(self.acquire(&message.request)))
    }
}

impl Handler<Envelope<Status>> for FactoryActor {
    type Result = Pending<Self, Status>;

    fn handle(&mut self, _: Envelope<Status>, _: &mut Context<Self>) -> Self::Result {
        now::<_, Status>(Ok(self.status.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factory_never_fails_a_creation_and_says_why_it_has_nothing() {
        let mut factory = FactoryActor::default();
        for (template, cache, word) in [(false, 0, "neither"), (true, 0, "template"), (true, 2, "cache")] {
            let Acquired::ColdBoot { reason } = factory.acquire(&Acquire { template, cache });
            assert!(reason.contains(word), "{reason}");
        }
        assert_eq!(factory.status.cold_boots, 3);
    }
}
