// Package commandlines finds the command lines of the documents, for the tests
// that parse and run them.
//
// What is indented by four spaces or more, or is in a fenced block, is code. A
// line of code is a command line if it begins with a program that Programs has,
// perhaps behind variables, "echo … |" and the like. In a block that is fenced
// with "sh", every line is one. In another fenced block only lines behind "$ "
// are; what follows them is what they print. A unit of systemd has one behind
// "ExecStart=", and a line of a crontab one behind the times.
package commandlines
