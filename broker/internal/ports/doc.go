// Package ports opens ports. Its error for a port that is taken names the
// option that chose the port.
package ports
