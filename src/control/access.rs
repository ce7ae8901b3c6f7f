//! Who may ask what.
//!
//! What belongs here: the class of each method, and what each socket is for. What does not: who
//! may open a socket; that is the file system's to say.

/// What a method does to those who use a core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// It tells something and changes nothing.
    Observe,
    /// It changes something that a guest need not notice, or that it waits for.
    Control,
    /// It takes a core away from its guests.
    Destructive,
}

/// What a connection may ask, by the socket it came through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Everything.
    Control,
    /// What changes nothing.
    Monitor,
}

/// Every method of the contract.
const CLASSES: [(&str, Class); 21] = [
    ("io.rprocd.List", Class::Observe),
    ("io.rprocd.Events", Class::Observe),
    ("io.rprocd.Trace", Class::Observe),
    ("io.rprocd.Memory", Class::Observe),
    ("io.rprocd.Resources", Class::Observe),
    ("io.rprocd.Coredumps", Class::Observe),
    ("io.rprocd.FirmwareFiles", Class::Observe),
    ("io.rprocd.CheckFirmware", Class::Observe),
    ("io.rprocd.CheckConfig", Class::Observe),
    // It has all of the core's memory in it, guests' messages included.
    ("io.rprocd.OpenCoredump", Class::Control),
    ("io.rprocd.Start", Class::Control),
    ("io.rprocd.Attach", Class::Control),
    ("io.rprocd.Suspend", Class::Control),
    ("io.rprocd.Resume", Class::Control),
    ("io.rprocd.Recover", Class::Control),
    ("io.rprocd.SetRecovery", Class::Control),
    ("io.rprocd.SetFirmware", Class::Control),
    ("io.rprocd.SetCoredump", Class::Control),
    ("io.rprocd.Crash", Class::Destructive),
    ("io.rprocd.Stop", Class::Destructive),
    ("io.rprocd.Detach", Class::Destructive),
];

/// Is it a method of the contract?
pub fn is_known(method: &str) -> bool {
    CLASSES.iter().any(|(name, _)| *name == method)
}

/// The class of a method. What Varlink asks of every service changes nothing; what nobody knows
/// is treated as if it changed everything.
pub fn class(method: &str) -> Class {
    if method.starts_with("org.varlink.service.") {
        return Class::Observe;
    }
    let found = CLASSES.iter().find(|(name, _)| *name == method);
    found.map_or(Class::Destructive, |(_, class)| *class)
}

#[cfg(test)]
mod tests {
    use super::super::{INTERFACE, INTERFACE_NAME};
    use super::*;

    #[test]
    fn every_method_of_the_contract_has_a_class_and_no_other_has() {
        let methods: Vec<_> = INTERFACE
            .lines()
            .filter_map(|line| line.strip_prefix("method ")?.split_once('('))
            .map(|(name, _)| format!("{INTERFACE_NAME}.{name}"))
            .collect();
        for method in &methods {
            assert!(CLASSES.iter().any(|(name, _)| name == method), "{method}");
        }
        assert_eq!(methods.len(), CLASSES.len());
    }

    #[test]
    fn what_nobody_knows_is_not_for_those_who_look() {
        assert_eq!(class("io.rprocd.Explode"), Class::Destructive);
        assert_eq!(class("org.varlink.service.GetInfo"), Class::Observe);
    }
}
