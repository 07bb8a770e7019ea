module github.com/cantuslog/cantus/subjects

go 1.26.0
