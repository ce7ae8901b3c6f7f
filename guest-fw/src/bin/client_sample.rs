//! The far side of Linux's `rpmsg_client_sample`, and nothing else.

#![no_std]
#![no_main]

use rprocd_guest_fw::services::Sample;
use rprocd_guest_fw::{Board, Endpoint, image};

fn main(board: Board) -> ! {
    let mut sample = Sample::default();
    board.serve(&mut [Endpoint::new(Sample::NAME, 1024, &mut sample)])
}

image!("client-sample", main);
