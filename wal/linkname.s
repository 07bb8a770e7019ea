// Empty: it lets compactors.go declare functions without a body.
