//! Which backends the connection ids of a service's QUIC packets name.

use std::collections::BTreeMap;

use foobar_lb_ebpf::layout::{Quic, ServerId};

use super::{Backend, Service};

impl Service {
    /// What connection ids look like that name its backends.
    pub(super) fn connection_ids(&self) -> Quic {
        self.config.quic.map_or(Quic::NONE, |quic| Quic {
            list: self.list,
            length: quic.server_id_length.into(),
            rotation: quic.config_rotation.into(),
        })
    }

    /// The ids of the backends by their server ids. One that lingers keeps its own unless another has that now.
    pub(super) fn server_ids(&self) -> BTreeMap<ServerId, u32> {
        let quic = self.connection_ids();
        let mut named = BTreeMap::new();
        for backend in &self.backends {
            if let Some(server) = server_id(quic, backend) {
                named.entry(server).or_insert(backend.id);
            }
        }
        named
    }
}

/// The backend's server id, if it is one of those that are looked for: one that lingers may have none, or another kind.
fn server_id(quic: Quic, backend: &Backend) -> Option<ServerId> {
    let bytes = backend.config.quic_id.as_ref()?;
    let wanted = quic.list != 0 && bytes.len() == usize::from(quic.length);
    let mut id = [0; 16];
    id.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    wanted.then_some(ServerId { list: quic.list, length: quic.length.into(), id })
}
