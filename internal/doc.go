// Package internal holds what tests of several folders share.
package internal
