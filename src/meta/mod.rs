//! meta

pub mod view;
