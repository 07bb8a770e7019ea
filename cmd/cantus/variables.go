package main

import (
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// variablePrefix begins the names of the variables that commands read.
const variablePrefix = "CANTUS_"

// testVariables are those that the tests of this repository read. They pass
// them on to the commands that they start.
var testVariables = []string{
	"CANTUS_BENCH_DEVICE", "CANTUS_E2E_LOGS", "CANTUS_EXAMPLES", "CANTUS_HISTORIES", "CANTUS_LONG", "CANTUS_SIM_RUNS",
	"CANTUS_SIM_SCRIPT", "CANTUS_SIM_SEED", "CANTUS_SIM_TRACE", "CANTUS_TEST_LOG", "CANTUS_WAL_CHILD",
}

// checkVariables returns an error for each variable that no command reads, if
// the command reads any.
func checkVariables(ctx *kong.Context) mistakes {
	for _, f := range ctx.Flags() {
		if len(f.Envs) > 0 {
			return unknownVariables(ctx.Model.Node, environment())
		}
	}
	return nil
}

// environment returns the variables that begin with the prefix.
func environment() map[string]string {
	env := map[string]string{}
	for _, entry := range os.Environ() {
		if name, value, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, variablePrefix) {
			env[name] = value
		}
	}
	return env
}

// unknownVariables returns an error for each variable of env that no command of
// app reads. It never names a value, which may be a secret.
func unknownVariables(app *kong.Node, env map[string]string) (all mistakes) {
	known := variablesOf(app)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if slices.Contains(known, name) || slices.Contains(testVariables, name) || ofService(name, env) {
			continue
		}
		if near := nearestVariable(name, known); near != "" {
			all = append(all, fmt.Errorf("unknown variable %s: did you mean %s?", name, near))
			continue
		}
		all = append(all, fmt.Errorf("unknown variable %s: unset it, or take one that \"cantus COMMAND --help\" names", name))
	}
	return all
}

// variablesOf returns the variables that a command and those below it read.
func variablesOf(node *kong.Node) (all []string) {
	for _, f := range node.Flags {
		all = append(all, f.Envs...)
	}
	for _, child := range node.Children {
		all = append(all, variablesOf(child)...)
	}
	return all
}

// nearestVariable returns the variable that is most similar to name, or that
// name begins with, or else "".
func nearestVariable(name string, known []string) string {
	word := strings.ToUpper(strings.TrimPrefix(name, variablePrefix))
	var words []string
	for _, k := range known {
		words = append(words, strings.TrimPrefix(k, variablePrefix))
	}
	near := nearest(word, words)
	if near == "" {
		for _, k := range words {
			if strings.HasPrefix(word, k) && len(k) > len(near) {
				near = k
			}
		}
	}
	if near == "" {
		return ""
	}
	return variablePrefix + near
}

// serviceVariable matches what follows the name of a Service in the names of
// the variables that Kubernetes sets in a pod for each Service.
var serviceVariable = regexp.MustCompile(`^_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// ofService reports whether Kubernetes has set a variable, for a Service whose
// name is cantus or begins with "cantus-". Then there is also the Service's
// address.
func ofService(name string, env map[string]string) bool {
	for i, c := range name {
		if c != '_' || !serviceVariable.MatchString(name[i:]) || net.ParseIP(env[name[:i]+"_SERVICE_HOST"]) == nil {
			continue
		}
		if name[i:] != "_PORT" || strings.Contains(env[name], "://") {
			return true
		}
	}
	return false
}
