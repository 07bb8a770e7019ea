// Package shell documents the smallest follower and the smallest transaction
// with the nats command, in README.md. Its test sends the requests there as the
// command would, and compares the answers.
package shell
