//! The live page in a real Chromium, in a network of its own that has nothing else: what tabs show while runs go on, while
//! workers and the writer end, and in every state, also on a narrow screen and to who cannot see it.

mod driver;
mod fleet;
mod states;
mod tabs;
mod text;
