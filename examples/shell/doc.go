// Package shell documents, in README.md, the smallest follower and the smallest
// transaction with the nats command. Its test sends the requests of README.md
// as the command does, and compares the answers.
package shell
