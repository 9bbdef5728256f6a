//! Templates that are built in steps, each of which leaves a generation.
//!
//! ```text
//!  TemplateBuilder ── plan ──▶ stages ── for each step ──▶ note (variables, user, directory ...)
//!   (or Dockerfile)                          │
//!                                            └──▶ guest_step: a key ──▶ its record, or a guest that does the step
//!                                                                           │ capture: the guest goes on
//!                                                                           ▼
//!                            publish: the name ◀── start, ready ◀── the last generation
//! ```
//!
//! A recipe is data ([`recipe`], [`step`], [`dockerfile`]); what its keys are made of is decided without a guest ([`key`],
//! [`context`]); [`stage`] does the rest.

mod added;
mod archive;
mod at;
mod base;
pub(crate) mod builder;
mod cache;
mod command;
mod context;
mod copying;
mod dockerfile;
pub(crate) mod event;
mod failure;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod glob;
mod ignore;
mod key;
mod output;
pub(crate) mod ready;
mod recipe;
mod run;
mod serving;
mod stage;
pub(crate) mod step;
mod teller;
mod unused_images;
mod work;
