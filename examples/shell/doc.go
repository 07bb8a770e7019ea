// Package shell documents, in README.md, the smallest follower, the smallest
// transaction and the smallest decision without a view, with the nats command.
// Its test sends the requests of README.md as the command does, and compares
// the answers.
package shell
