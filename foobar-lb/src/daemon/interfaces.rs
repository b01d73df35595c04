//! Where the data path is attached, from the start to the end: interfaces come, go, come back and get other names.

use tracing::{info, warn};

use super::{Consequence, Daemon};
use crate::{
    api,
    bpf::{Attach, Bpf, Link, Mode},
    neighbour::{Interface, View},
    start::{self, chain},
};

impl Daemon {
    /// Attaches to the interfaces, or goes on with those that are.
    pub fn attach(
        &mut self,
        bpf: &mut Bpf,
        interfaces: &[(String, Interface)],
        mode: Option<Mode>,
        seed: u64,
    ) -> Result<(), start::Error> {
        self.links = match &mut self.pins {
            None => start::attach(bpf, interfaces, mode)?,
            Some(pins) => {
                bpf.pin_program(pins, seed)?;
                let links = start::attach_pinned(bpf, interfaces, mode, pins)?;
                pins.confirm();
                self.reload.leave_settings(true);
                links
            }
        };
        Ok(())
    }

    /// The end. What is pinned and attached stays.
    pub fn leave(&mut self) {
        self.service_manager.stopping();
        match &self.pins {
            Some(pins) if !self.links.is_empty() => info!(
                "the data path stays, on {}, with health as it is now; `foobar-lb detach` takes it off",
                self.links.values().map(|link| link.interface.as_str()).collect::<Vec<_>>().join(", ")
            ),
            Some(pins) => {
                self.reload.leave_settings(false);
                if let Err(error) = pins.clear() {
                    warn!("{}", chain(&error));
                }
            }
            None => info!("detaching"),
        }
    }

    /// An interface that is gone took the program with it; one that is back gets it again. A new name is shown from now
    /// on, and a new MAC is answered for.
    pub(super) fn observe_network(&mut self, view: View, bpf: &mut Bpf) -> Consequence {
        let gone: Vec<u32> =
            self.links.keys().filter(|index| !view.links.contains_key(index)).copied().collect();
        for index in gone {
            self.forget_interface(index);
        }
        for (index, link) in &mut self.links {
            let found = &view.links[index];
            if link.interface != found.name {
                info!(interface = %found.name, before = %link.interface, "the interface has another name");
                link.interface.clone_from(&found.name);
            }
        }
        // Where the kernel refused to detach, one may be here that has no link any more.
        self.state.attached.retain(|index, interface| {
            let found = view.links.get(index);
            interface.mac = found.and_then(|link| link.mac).unwrap_or(interface.mac);
            found.is_some()
        });
        self.state.observe_network(view);
        for (name, interface) in self.find_those_back() {
            if let Err(error) = self.attach_again(&name, interface, bpf) {
                warn!(interface = %name, "it is back and not attached: {}", chain(&error));
            }
        }
        Consequence::Reconcile
    }

    fn forget_interface(&mut self, index: u32) {
        let Some(link) = self.links.remove(&index) else { return };
        self.state.attached.remove(&index);
        warn!(interface = %link.interface, "the interface is gone; it is attached again when it is back");
        if let Some(Err(error)) = self.pins.as_ref().map(|pins| pins.forget(index)) {
            warn!("{}", chain(&error));
        }
    }

    /// Interfaces that were named and are not attached, as those are that have been made anew.
    fn find_those_back(&self) -> Vec<(String, Interface)> {
        let links = &self.state.view().links;
        let find = |name: &String| {
            let (index, link) = links.iter().find(|(_, link)| link.name == *name)?;
            let interface = Interface { index: *index, mac: link.mac?, mtu: link.mtu, xdp: None };
            (!self.links.contains_key(index)).then(|| (name.clone(), interface))
        };
        self.reload.interfaces().iter().filter_map(find).collect()
    }

    fn attach_again(&mut self, name: &str, interface: Interface, bpf: &mut Bpf) -> Result<(), start::Error> {
        let mode = self.links.values().next().map(|link| link.mode).or(self.reload.mode());
        let interfaces = [(name.to_owned(), interface)];
        for (index, link) in start::attach(bpf, &interfaces, mode)? {
            let link = match &self.pins {
                Some(pins) => bpf.pin(link, index, pins)?,
                None => link,
            };
            self.links.insert(index, link);
        }
        self.state.attached.extend(start::render(&interfaces));
        self.reload.ensure_settings(&self.state)
    }

    /// Takes the data path off interfaces, as the operator asks.
    pub(super) fn detach(
        &mut self,
        request: &api::Detach,
        bpf: &mut Bpf,
    ) -> Result<api::Detached, api::Failure> {
        let named =
            |link: &Link| request.interfaces.is_empty() || request.interfaces.contains(&link.interface);
        let attached = |name: &&String| self.links.values().any(|link| link.interface == **name);
        if let Some(name) = request.interfaces.iter().find(|name| !attached(name)) {
            return Err(api::Failure::new(format!("not attached to {name}")));
        }
        let indexes: Vec<u32> =
            self.links.iter().filter(|(_, link)| named(link)).map(|(index, _)| *index).collect();
        let mut interfaces = Vec::new();
        for index in indexes {
            let Some(link) = self.links.remove(&index) else { continue };
            let name = link.interface.clone();
            bpf.detach(link).map_err(api::Failure::of)?;
            self.state.attached.remove(&index);
            info!(interface = %name, "detached");
            interfaces.push(name);
        }
        Ok(api::Detached { interfaces, ends: self.links.is_empty() })
    }
}
