// Package ports opens ports, and says which option chose one that is taken.
package ports
