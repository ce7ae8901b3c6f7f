//! A terminal that echoes, and nothing else.

#![no_std]
#![no_main]

use rprocd_guest_fw::services::Terminal;
use rprocd_guest_fw::{Board, Endpoint, image};

fn main(board: Board) -> ! {
    let mut terminal = Terminal::default();
    board.serve(&mut [Endpoint::new(Terminal::NAME, 1024, &mut terminal)])
}

image!("tty", main);
